#include "mlp_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace lpn {
namespace {

constexpr int fewest_resident_warps = 4;  // fewer cannot hide latency; then weights come through the caches
constexpr int run_time_tiles = 4;         // where H is not known when compiling, it is a multiple of so many
constexpr int block_overhead = 1024;      // bytes of shared memory the system keeps per block

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_sixteen(Precision precision) { return precision == Precision::fp16 || precision == Precision::bf16; }

struct Fit {
  Shape shape;
  int tiles;
  bool resident;
  bool spilled;
  int teams;  // per block, 0 = none
  int64_t head_bytes;
  int64_t team_bytes;
  int64_t slot_bytes;  // all slots of a team

  int warps() const { return teams * shape.team; }
};

Fit fit(const MlpProblem& problem,
        Precision precision,
        Operation operation,
        const Shape& shape,
        int tiles,
        bool resident,
        bool spilled,
        const DeviceLimits& limits) {
  const int element_bytes = is_sixteen(precision) ? 2 : 4, parts = precision == Precision::fp32 ? 1 : 2;
  const PackedLayout packed{tiles, problem.dim_tiles, problem.stage_count, element_bytes};
  const TeamLayout team = team_layout(operation, problem.stage_count, tiles, problem.dim_tiles,
                                      shape.row_tiles, shape.team, element_bytes, parts, spilled);
  const int64_t extra = operation == Operation::vjp ? vjp_extra_bytes(16 * shape.row_tiles, shape.team)
                        : operation == Operation::solve
                            ? solve_extra_bytes(shape.row_tiles, problem.dim_tiles)
                            : 0;
  Fit result{
      shape,           tiles, resident, spilled, 0, shared_head_bytes(packed, resident), team.bytes() + extra,
      team.all_slots()};
  const int64_t room = limits.shared_per_block - result.head_bytes;
  if (room > 0)
    result.teams =
        static_cast<int>(std::min<int64_t>(most_teams(operation, shape), room / result.team_bytes));
  return result;
}

// The shape with known width that the network fits into, or nullptr.
const Width* known_width(const MlpProblem& problem) {
  for (const Width& width : widths)
    if (problem.widest <= 8 * width.tiles) return &width;
  return nullptr;
}

}  // namespace

MlpProblem make_problem(const int64_t* table,
                        int64_t dim,
                        int64_t stage_count,
                        int64_t parameter_count,
                        double beta,
                        double alpha) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument(what); };
  if (stage_count < 1 || stage_count > max_stages)
    refuse("stages must be 1 to " + std::to_string(max_stages) + ", got " + std::to_string(stage_count));
  if (dim < 1 || dim > max_dim)
    refuse("dim must be 1 to " + std::to_string(max_dim) + ", got " + std::to_string(dim));
  MlpProblem problem{};
  int64_t widest = 0;
  for (int64_t l = 0; l < stage_count; ++l) {
    const int64_t* entry = table + 6 * l;
    if (entry[0] < 1 || entry[0] > max_width)
      refuse("width of stage " + std::to_string(l) + " must be 1 to " + std::to_string(max_width) + ", got " +
             std::to_string(entry[0]));
    if ((entry[1] < 0) != (l == 0))
      refuse("every stage but the first must have a core, stage " + std::to_string(l) + " differs");
    const int64_t below = l ? table[6 * (l - 1)] : 0;
    const int64_t sizes[6] = {0, entry[0] * below, entry[0] * dim, entry[0], entry[0], entry[0]};
    for (int i = 1; i < 6; ++i)
      if (entry[i] >= 0 && entry[i] + sizes[i] > parameter_count)
        refuse("parameters of stage " + std::to_string(l) + " must lie within " +
               std::to_string(parameter_count) + " values");
    const auto offset = [entry](int i) { return static_cast<int32_t>(entry[i]); };
    problem.stages[l] = {offset(0), offset(1), offset(2), offset(3), offset(4), offset(5)};
    widest = std::max(widest, entry[0]);
  }
  const int64_t linear = table[6 * stage_count], constant = table[6 * stage_count + 1];
  if (linear + dim > parameter_count || constant + 1 > parameter_count || parameter_count >= INT32_MAX)
    refuse("c and c0 must lie within " + std::to_string(parameter_count) + " values");
  problem.stage_count = static_cast<int32_t>(stage_count);
  problem.dim = static_cast<int32_t>(dim);
  problem.linear = static_cast<int32_t>(linear);
  problem.constant = static_cast<int32_t>(constant);
  problem.parameter_count = static_cast<int32_t>(parameter_count);
  problem.widest = static_cast<int32_t>(widest);
  problem.tiles = static_cast<int32_t>(run_time_tiles * ceil_div(widest, 8 * run_time_tiles));
  problem.dim_tiles = static_cast<int32_t>(2 * ceil_div(dim, 16));
  problem.beta = static_cast<float>(beta);
  problem.alpha = static_cast<float>(alpha);
  return problem;
}

Plan make_plan(const MlpProblem& problem,
               Precision precision,
               Operation operation,
               int64_t rows,
               const DeviceLimits& limits) {
  const auto try_shape = [&](const Shape& shape, int tiles, bool resident, bool spilled = false) {
    return fit(problem, precision, operation, shape, tiles, resident, spilled, limits);
  };
  const bool solves = operation == Operation::solve;
  const Width* width = known_width(problem);
  Fit best{};
  if (solves) {
    best = try_shape(solver_shape, problem.tiles, true);
  } else if (width) {
    // Wide if every processor then still has warps to switch between.
    const bool enough = rows >= int64_t{limits.processors} * most_warps(operation, wide.shape.row_tiles) *
                                    16 * wide.shape.row_tiles;
    if (has_wide(operation) && width->tiles == wide.tiles && enough)
      best = try_shape(wide.shape, wide.tiles, true);
    if (best.warps() < fewest_resident_warps) best = try_shape(width->shape, width->tiles, true);
  } else {
    for (const Shape& shape : broad_shapes) {
      // several row tiles if every processor then still has rows
      if (!has_broad(operation, shape.row_tiles, is_sixteen(precision) ? 2 : 4) ||
          (shape.row_tiles > 1 && rows < int64_t{limits.processors} * 16 * shape.row_tiles))
        continue;
      best = try_shape(shape, problem.tiles, false);
      if (best.teams == 0 && shape.row_tiles == 1 && !is_sixteen(precision))
        best = try_shape(shape, problem.tiles, false, true);
      if (best.teams > 0) break;
    }
  }
  if (best.warps() < fewest_resident_warps && (solves || width)) {
    const Shape& shape = solves ? solver_shape : streamed_shape;
    const Fit through_caches = try_shape(shape, problem.tiles, false);
    if (through_caches.warps() > best.warps() || best.teams == 0) best = through_caches;
    // Operands of 16 bits are read by an instruction that knows shared memory only.
    if (best.teams == 0 && !is_sixteen(precision)) best = try_shape(shape, problem.tiles, false, true);
  }
  if (best.teams == 0)
    throw std::invalid_argument("16 rows need " + std::to_string(best.head_bytes + best.team_bytes) +
                                " bytes of shared memory, the device gives a block " +
                                std::to_string(limits.shared_per_block));

  Plan plan{};
  plan.row_tiles = best.shape.row_tiles;
  plan.column_tiles = best.shape.column_tiles;
  plan.team = best.shape.team;
  plan.tiles = best.tiles;
  plan.resident = best.resident;
  plan.spilled = best.spilled;
  const int64_t row_blocks = std::max<int64_t>(1, ceil_div(rows, 16 * plan.row_tiles));  // one per team
  // few rows: spread them over the processors rather than fill blocks
  const auto teams =
      static_cast<int>(std::clamp<int64_t>(ceil_div(row_blocks, limits.processors), 1, best.teams));
  plan.warps = teams * plan.team;
  plan.shared_bytes = best.head_bytes + teams * best.team_bytes;
  const int64_t by_shared = limits.shared_per_processor / (plan.shared_bytes + block_overhead);
  const int64_t by_registers = most_warps(operation, plan.row_tiles) / plan.warps;
  const int64_t per_processor = std::max<int64_t>(1, std::min(by_shared, by_registers));
  plan.blocks =
      static_cast<int>(std::min<int64_t>(ceil_div(row_blocks, teams), limits.processors * per_processor));
  const PackedLayout packed{plan.tiles, problem.dim_tiles, problem.stage_count,
                            is_sixteen(precision) ? 2 : 4};
  plan.packed_bytes = packed.bytes(!plan.resident);
  plan.spilled_bytes = plan.spilled ? int64_t{plan.blocks} * teams * best.slot_bytes : 0;
  plan.partial_bytes = operation == Operation::vjp
                           ? int64_t{plan.blocks} * problem.parameter_count * int64_t{sizeof(float)}
                           : 0;
  return plan;
}

}  // namespace lpn
