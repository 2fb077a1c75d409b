#include "mlp_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace lpn {
namespace {

constexpr int fewest_resident_warps = 4;  // fewer cannot hide latency; then weights come through the caches
constexpr int block_overhead = 1024;      // bytes of shared memory the system keeps per block

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Fit {
  int warps;  // per block, 0 = none
  int64_t head_bytes;
  int64_t warp_bytes;
};

Fit fit(const MlpProblem& problem,
        Precision precision,
        Operation operation,
        const int (&config)[2],
        bool resident,
        const DeviceLimits& limits) {
  const bool sixteen = precision == Precision::fp16 || precision == Precision::bf16;
  const int element_bytes = sixteen ? 2 : 4, parts = precision == Precision::fp32 ? 1 : 2;
  const PackedLayout packed{problem.tiles, problem.dim_tiles, problem.stage_count, element_bytes};
  const WarpLayout warp = warp_layout(operation, problem.stage_count, problem.tiles, problem.dim_tiles,
                                      config[0], element_bytes, parts);
  const int64_t extra = operation == Operation::vjp     ? vjp_extra_bytes(1, 16 * config[0])
                        : operation == Operation::solve ? solve_extra_bytes(config[0], problem.dim_tiles)
                                                        : 0;
  Fit result{0, shared_head_bytes(packed, resident), warp.bytes() + extra};
  const int64_t room = limits.shared_per_block - result.head_bytes;
  if (room > 0)
    result.warps =
        static_cast<int>(std::min<int64_t>(most_warps(operation, config[0]), room / result.warp_bytes));
  return result;
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
  problem.tiles = static_cast<int32_t>(4 * ceil_div(widest, 32));
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
  // Wide if every processor then still has warps to switch between.
  const bool enough = rows >= int64_t{limits.processors} * most_warps(operation, wide[0]) * 16 * wide[0];
  bool use_wide = has_wide(operation) && problem.tiles % wide[1] == 0 && enough;
  bool resident = true;
  Fit best = fit(problem, precision, operation, use_wide ? wide : narrow, true, limits);
  if (best.warps < fewest_resident_warps && use_wide) {
    use_wide = false;
    best = fit(problem, precision, operation, narrow, true, limits);
  }
  if (best.warps < fewest_resident_warps) {
    const Fit streamed = fit(problem, precision, operation, narrow, false, limits);
    if (streamed.warps > best.warps || best.warps == 0) best = streamed, resident = false;
  }
  if (best.warps == 0)
    throw std::invalid_argument(
        "a warp of 16 rows needs " + std::to_string(best.head_bytes + best.warp_bytes) +
        " bytes of shared memory, the device gives a block " + std::to_string(limits.shared_per_block));

  const int (&config)[2] = use_wide ? wide : narrow;
  Plan plan{};
  plan.row_tiles = config[0];
  plan.column_tiles = config[1];
  plan.resident = resident;
  const int64_t warp_tiles = std::max<int64_t>(1, ceil_div(rows, 16 * config[0]));
  // few rows: spread them over the processors rather than fill blocks
  plan.warps = static_cast<int>(std::clamp<int64_t>(ceil_div(warp_tiles, limits.processors), 1, best.warps));
  plan.shared_bytes = best.head_bytes + plan.warps * best.warp_bytes;
  const int64_t by_shared = limits.shared_per_processor / (plan.shared_bytes + block_overhead);
  const int64_t by_registers = most_warps(operation, config[0]) / plan.warps;
  const int64_t per_processor = std::max<int64_t>(1, std::min(by_shared, by_registers));
  plan.blocks = static_cast<int>(
      std::min<int64_t>(ceil_div(warp_tiles, plan.warps), limits.processors * per_processor));
  const bool sixteen = precision == Precision::fp16 || precision == Precision::bf16;
  const PackedLayout packed{problem.tiles, problem.dim_tiles, problem.stage_count, sixteen ? 2 : 4};
  plan.packed_bytes = packed.bytes(!resident);
  plan.partial_bytes = operation == Operation::vjp
                           ? int64_t{plan.blocks} * problem.parameter_count * int64_t{sizeof(float)}
                           : 0;
  return plan;
}

}  // namespace lpn
