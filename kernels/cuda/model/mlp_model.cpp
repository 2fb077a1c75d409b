// The kernels of dense networks on the CPU model of the machine, for tests: a plain C interface.

#include <stdint.h>
#include <algorithm>
#include <cmath>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "../mlp_hvp.h"
#include "../mlp_plan.h"
#include "../mlp_solve.h"
#include "../mlp_vjp.h"

namespace {

using namespace lpn;

thread_local std::string last_error;

template <class Function>
int guarded(Function function) {
  try {
    function();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

#if !defined(LPN_MODEL_PRECISION)
#define LPN_MODEL_PRECISION -1  // all; else the one that is compiled, without the solver
#endif
constexpr bool is_here(Precision precision) {
  return LPN_MODEL_PRECISION < 0 || LPN_MODEL_PRECISION == static_cast<int>(precision);
}

template <class Body>
void with_number(Precision precision, Body body) {
  if constexpr (is_here(Precision::fp32))
    if (precision == Precision::fp32) return body(Fp32{});
  if constexpr (is_here(Precision::tf32))
    if (precision == Precision::tf32) return body(Tf32{});
  if constexpr (is_here(Precision::fp16))
    if (precision == Precision::fp16) return body(Fp16{});
  if constexpr (is_here(Precision::bf16))
    if (precision == Precision::bf16) return body(Bf16{});
  throw std::invalid_argument("this model was built without that precision");
}

// The operations that a configuration is compiled for.
template <class K>
constexpr bool has(Operation operation) {
  if (K::team == broad_team) return has_broad(operation, K::row_tiles, sizeof(typename K::Number::Element));
  return K::row_tiles == 1 || has_wide(operation);
}

template <class K>
void run_kernel(Operation operation, const MlpCall& call, const Plan& plan, simt::WarpOrder order) {
  simt::run(plan.blocks, plan.warps, plan.shared_bytes, order, [&](unsigned char* shared) {
    if (operation == Operation::prox) return prox<K>(call, shared);
    if constexpr (has<K>(Operation::hvp))
      if (operation == Operation::hvp) return hvp<K>(call, shared);
    if constexpr (has<K>(Operation::vjp))
      if (operation == Operation::vjp) return vjp<K>(call, shared);
    throw std::invalid_argument("the plan has a shape that its operation is not compiled for");
  });
}

template <class Number, int index = 0>
void run_broad(Operation operation, const MlpCall& call, const Plan& plan, simt::WarpOrder order) {
  constexpr Shape shape = broad_shapes[index];
  if constexpr (has_broad(Operation::prox, shape.row_tiles, sizeof(typename Number::Element)))
    if (plan.row_tiles == shape.row_tiles)
      return run_kernel<Config<Number, shape.row_tiles, shape.column_tiles, false, shape.team>>(
          operation, call, plan, order);
  if constexpr (index + 1 < broad_count) return run_broad<Number, index + 1>(operation, call, plan, order);
}

// As mlp_kernels.h chooses.
template <class Number, int index = 0>
void run_number(Operation operation, const MlpCall& call, const Plan& plan, simt::WarpOrder order) {
  if constexpr (index == width_count) {
    if (plan.team == broad_team) return run_broad<Number>(operation, call, plan, order);
    run_kernel<
        Config<Number, streamed_shape.row_tiles, streamed_shape.column_tiles, false, streamed_shape.team>>(
        operation, call, plan, order);
  } else {
    constexpr Width width = widths[index];
    if (plan.resident && plan.row_tiles == wide.shape.row_tiles)
      run_kernel<
          Config<Number, wide.shape.row_tiles, wide.shape.column_tiles, true, wide.shape.team, wide.tiles>>(
          operation, call, plan, order);
    else if (plan.resident && plan.tiles == width.tiles)
      run_kernel<Config<Number, width.shape.row_tiles, width.shape.column_tiles, true, width.shape.team,
                        width.tiles>>(operation, call, plan, order);
    else
      run_number<Number, index + 1>(operation, call, plan, order);
  }
}

DeviceLimits device_of(const int64_t* limits) {
  return {static_cast<int>(limits[0]), static_cast<int>(limits[1]), static_cast<int>(limits[2])};
}

// The workspace of what is spilled; NaN before.
struct Spilled {
  explicit Spilled(const Plan& plan) : words(plan.spilled_bytes / 8, ~uint64_t{0}) {}
  unsigned char* at() { return words.empty() ? nullptr : reinterpret_cast<unsigned char*>(words.data()); }

  std::vector<uint64_t> words;
};

// The workspace that packing fills; NaN before.
struct Packed {
  explicit Packed(const Plan& plan) : words(plan.packed_bytes / 8 + 3, ~uint64_t{0}) {
    bytes = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(words.data()) + 15) / 16 * 16);
  }

  template <class Number>
  void fill(const MlpProblem& problem,
            const float* parameters,
            const Plan& plan,
            simt::WarpOrder order) const {
    const PackCall call{problem, parameters, bytes, !plan.resident};
    simt::run(problem.stage_count, pack_threads / 32, pack_threads * sizeof(float), order,
              [&](unsigned char* shared) { pack<Number>(call, reinterpret_cast<float*>(shared)); });
  }

  std::vector<uint64_t> words;
  unsigned char* bytes;
};

}  // namespace

extern "C" {

const char* model_error() { return last_error.c_str(); }

// plan: [row_tiles, column_tiles, team, tiles, resident, spilled, warps, blocks, shared, packed, partial,
// spilled bytes]
int model_plan(const int64_t* table,
               int64_t dim,
               int64_t stages,
               int64_t parameter_count,
               int precision,
               int operation,
               int64_t rows,
               const int64_t* limits,
               int64_t* plan) {
  return guarded([&] {
    const MlpProblem problem = make_problem(table, dim, stages, parameter_count, 1.0, 0.0);
    const Plan p = make_plan(problem, static_cast<Precision>(precision), static_cast<Operation>(operation),
                             rows, device_of(limits));
    const int64_t values[] = {p.row_tiles,    p.column_tiles, p.team,          p.tiles,
                              p.resident,     p.spilled,      p.warps,         p.blocks,
                              p.shared_bytes, p.packed_bytes, p.partial_bytes, p.spilled_bytes};
    std::copy(std::begin(values), std::end(values), plan);
  });
}

// The solver; pointers as in SolveCall.
int model_solve(const int64_t* table,
                int64_t dim,
                int64_t stages,
                int64_t parameter_count,
                double beta,
                double alpha,
                const int64_t* limits,
                int backward_order,
                const float* parameters,
                const float* z,
                const float* start,
                const float* t,
                float* u,
                float* f,
                float* psi,
                double* residual,
                int64_t* iterations,
                int64_t* verdict,
                int64_t rows,
                double tol,
                double radius,
                int64_t max_iter) {
  return guarded([&] {
    MlpProblem problem = make_problem(table, dim, stages, parameter_count, beta, alpha);
    const Plan plan = make_plan(problem, Precision::fp32, Operation::solve, rows, device_of(limits));
    problem.tiles = plan.tiles;
    const Packed packed(plan);
    packed.fill<Fp32>(problem, parameters, plan, simt::WarpOrder::forward);
    Spilled spilled(plan);
    const MlpCall call{problem, parameters, packed.bytes, z,   start, t, psi, f,
                       u,       nullptr,    spilled.at(), rows};
    const SolveCall solve_call{
        call, residual, iterations, verdict, tol, radius, static_cast<int32_t>(max_iter)};
#if LPN_MODEL_PRECISION < 0
    const auto order = backward_order ? simt::WarpOrder::backward : simt::WarpOrder::forward;
    simt::run(plan.blocks, plan.warps, plan.shared_bytes, order, [&](unsigned char* shared) {
      constexpr Shape shape = solver_shape;
      if (plan.resident)
        solve<Config<Fp32, shape.row_tiles, shape.column_tiles, true, shape.team>>(solve_call, shared);
      else
        solve<Config<Fp32, shape.row_tiles, shape.column_tiles, false, shape.team>>(solve_call, shared);
    });
#else
    static_cast<void>(solve_call), static_cast<void>(backward_order);
#endif
  });
}

// Packs, runs, and for vjp sums the partial gradients into gP. Workspaces start as NaN.
int model_run(const int64_t* table,
              int64_t dim,
              int64_t stages,
              int64_t parameter_count,
              double beta,
              double alpha,
              int precision_,
              int operation_,
              const int64_t* limits,
              int backward_order,
              const float* parameters,
              const float* x,
              const float* v,
              const float* p,
              float* psi,
              float* f,
              float* hv,
              float* gP,
              int64_t rows) {
  return guarded([&] {
    const auto precision = static_cast<Precision>(precision_);
    const auto operation = static_cast<Operation>(operation_);
    const auto order = backward_order ? simt::WarpOrder::backward : simt::WarpOrder::forward;
    MlpProblem problem = make_problem(table, dim, stages, parameter_count, beta, alpha);
    const Plan plan = make_plan(problem, precision, operation, rows, device_of(limits));
    problem.tiles = plan.tiles;
    const Packed packed(plan);
    std::vector<float> partial(plan.partial_bytes / sizeof(float), std::nanf(""));
    Spilled spilled(plan);
    const MlpCall call{problem, parameters,     packed.bytes, x,   v, p, psi, f,
                       hv,      partial.data(), spilled.at(), rows};
    with_number(precision, [&](auto number) {
      using Number = decltype(number);
      packed.fill<Number>(problem, parameters, plan, order);
      run_number<Number>(operation, call, plan, order);
    });
    if (operation == Operation::vjp) {
      const SumCall sum{partial.data(), gP, rows > 0 ? plan.blocks : 0,
                        static_cast<int32_t>(parameter_count)};
      simt::run(2, 4, 0, order, [&](unsigned char*) { sum_partials(sum); });
    }
  });
}

}  // extern "C"
