// lpn_fast._cpu: the CPU kernels for Python.
//
// Tensors arrive as addresses of contiguous data, float32 unless a name says otherwise, and sizes, so the
// module knows nothing of torch: one binary serves any version of it. Shapes, dtypes and devices are checked
// by the Python callers; here only what would crash. The GIL is released around the work.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"
#include "experts_bindings.h"
#include "frame_bindings.h"
#include "isa.h"
#include "mlp.h"
#include "narrow_bindings.h"
#include "packing.h"
#include "pages.h"
#include "prior_bindings.h"
#include "projector_bindings.h"
#include "threads.h"
#include "winograd_bindings.h"

namespace py = pybind11;

namespace lpn {
namespace {

// Activations per range of a thread: 16 Ki elements are some 10 us of work, large against drawing the range.
constexpr int64_t elements_per_range = int64_t{1} << 14;

void require_common(int64_t rows, float beta, int threads) {
  require_at_least(0, rows, "rows");
  require_at_least(1, threads, "threads");
  if (!(beta > 0.0f) || std::isinf(beta))
    throw std::invalid_argument("beta must be positive and finite, got " + std::to_string(beta));
}

const ActivationKernels<float>& activations(float) { return active_kernels().activations_float; }
const ActivationKernels<BFloat16>& activations(BFloat16) { return active_kernels().activations_bfloat16; }

template <class Value, class Op>
void run_rows(void (*ActivationKernels<Value>::*kernel)(const Op&, int64_t, int64_t),
              const Op& op,
              int64_t rows,
              int threads) {
  if (rows == 0 || op.channels == 0) return;
  const auto run = activations(Value{}).*kernel;
  const int64_t grain = std::max<int64_t>(1, elements_per_range / op.channels);
  parallel_for(rows, grain, threads, [&](int, int64_t begin, int64_t end) { run(op, begin, end); });
}

template <class Value>
void bind_softplus(Address u,
                   Address skip,
                   Address bias,
                   int64_t rows_per_bias,
                   Address out,
                   int64_t rows,
                   int64_t channels,
                   float beta,
                   int threads) {
  require_common(rows, beta, threads);
  require_at_least(0, channels, "channels");
  if (bias) require_at_least(1, rows_per_bias, "rows_per_bias");
  const int64_t count = rows * channels;
  const Softplus<Value> op{required<const Value>(u, "u", count),
                           optional<const float>(skip, "skip"),
                           optional<const float>(bias, "bias"),
                           rows_per_bias,
                           required<Value>(out, "out", count),
                           channels,
                           beta};
  run_rows(&ActivationKernels<Value>::softplus, op, rows, threads);
}

template <class Value>
void bind_slope_mul(Address a,
                    Address z,
                    Address head,
                    Address head_sq,
                    Address out,
                    int64_t rows,
                    int64_t channels,
                    float beta,
                    int threads) {
  require_common(rows, beta, threads);
  require_at_least(0, channels, "channels");
  const int64_t count = rows * channels;
  const SlopeMul<Value> op{optional<const Value>(a, "a"),
                           required<const Value>(z, "z", count),
                           optional<const float>(head, "head"),
                           optional<const float>(head_sq, "head_sq"),
                           required<Value>(out, "out", count),
                           channels,
                           beta};
  run_rows(&ActivationKernels<Value>::slope_mul, op, rows, threads);
}

template <class Value>
void bind_tangent(
    Address a, Address b, Address z, Address out, int64_t rows, int64_t channels, float beta, int threads) {
  require_common(rows, beta, threads);
  require_at_least(0, channels, "channels");
  const int64_t count = rows * channels;
  const Tangent<Value> op{required<const Value>(a, "a", count),
                          optional<const float>(b, "b"),
                          required<const Value>(z, "z", count),
                          required<Value>(out, "out", count),
                          channels,
                          beta};
  run_rows(&ActivationKernels<Value>::tangent, op, rows, threads);
}

template <class Value>
void bind_adjoint(Address a,
                  Address z,
                  Address e,
                  Address dz,
                  Address head_sq,
                  Address out,
                  int64_t rows,
                  int64_t channels,
                  float beta,
                  int threads) {
  require_common(rows, beta, threads);
  require_at_least(0, channels, "channels");
  const int64_t count = rows * channels;
  const Adjoint<Value> op{optional<const Value>(a, "a"),
                          required<const Value>(z, "z", count),
                          required<const Value>(e, "e", count),
                          required<const Value>(dz, "dz", count),
                          optional<const float>(head_sq, "head_sq"),
                          required<Value>(out, "out", count),
                          channels,
                          beta};
  run_rows(&ActivationKernels<Value>::adjoint, op, rows, threads);
}

// psi[n] += sum over the rows of sample n. Samples are cut into ranges, whose sums are added in order: the
// result does not depend on the number of threads.
template <class Value>
void bind_heads(Address z,
                Address head,
                Address head_sq,
                Address psi,
                int64_t samples,
                int64_t rows,
                int64_t channels,
                int threads) {
  require_at_least(0, samples, "samples");
  require_at_least(0, rows, "rows");
  require_at_least(0, channels, "channels");
  require_at_least(1, threads, "threads");
  const Heads<Value> op{required<const Value>(z, "z", samples * rows * channels),
                        optional<const float>(head, "head"), optional<const float>(head_sq, "head_sq"),
                        channels};
  double* sums = required<double>(psi, "psi", samples);
  if (samples == 0 || rows == 0 || channels == 0) return;
  const int64_t length = std::max<int64_t>(1, elements_per_range / channels);
  const int64_t ranges = (rows + length - 1) / length;
  const auto run = activations(Value{}).heads;
  std::vector<double> parts(samples * ranges);
  parallel_for(samples * ranges, 1, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part / ranges * rows + part % ranges * length;
      parts[part] = run(op, first, std::min(first + length, (part / ranges + 1) * rows));
    }
  });
  for (int64_t part = 0; part < samples * ranges; ++part) sums[part / ranges] += parts[part];
}

template <class Value>
void define_activations(py::module_& module, const std::string& suffix) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  module.def(("softplus" + suffix).c_str(), &bind_softplus<Value>, unlocked(), arg("u"), arg("skip"),
             arg("bias"), arg("rows_per_bias"), arg("out"), arg("rows"), arg("channels"), arg("beta"),
             arg("threads"), "out = softplus_beta(u + skip + bias); skip and bias may be 0 and are float32.");
  module.def(("slope_mul" + suffix).c_str(), &bind_slope_mul<Value>, unlocked(), arg("a"), arg("z"),
             arg("head"), arg("head_sq"), arg("out"), arg("rows"), arg("channels"), arg("beta"),
             arg("threads"),
             "out = (a + head + 2 head_sq z) s(z); a, head and head_sq may be 0, the heads are float32.");
  module.def(("tangent" + suffix).c_str(), &bind_tangent<Value>, unlocked(), arg("a"), arg("b"), arg("z"),
             arg("out"), arg("rows"), arg("channels"), arg("beta"), arg("threads"),
             "out = (a + b) s(z); b may be 0 and is float32.");
  module.def(("adjoint" + suffix).c_str(), &bind_adjoint<Value>, unlocked(), arg("a"), arg("z"), arg("e"),
             arg("dz"), arg("head_sq"), arg("out"), arg("rows"), arg("channels"), arg("beta"), arg("threads"),
             "out = (a + 2 head_sq dz) s(z) + e dz q(z); a and head_sq may be 0, head_sq is float32.");
  module.def(
      ("heads" + suffix).c_str(), &bind_heads<Value>, unlocked(), arg("z"), arg("head"), arg("head_sq"),
      arg("psi"), arg("samples"), arg("rows"), arg("channels"), arg("threads"),
      "psi[n] += sum over the rows of sample n of z (head + head_sq z), in float64; head and head_sq may "
      "be 0.");
}

Network network(Address P, Address table, int64_t dim, int64_t stages, float beta, float alpha) {
  require_at_least(1, dim, "dim");
  require_at_least(1, stages, "stages");
  return Network(required<const float>(P, "P", 1), required<const int64_t>(table, "table", 1), dim, stages,
                 beta, alpha);
}

void bind_mlp_value_prox(Address x,
                         Address P,
                         Address table,
                         int64_t rows,
                         int64_t dim,
                         int64_t stages,
                         float beta,
                         float alpha,
                         Address psi,
                         Address f,
                         Address tape,
                         int threads) {
  require_common(rows, beta, threads);
  const Network net = network(P, table, dim, stages, beta, alpha);
  const MlpProx io{required<const float>(x, "x", rows), optional<float>(psi, "psi"),
                   required<float>(f, "f", rows), net.tape(optional<float>(tape, "tape"), rows)};
  net.value_prox(io, rows, threads);
}

void bind_mlp_hvp(Address x,
                  Address P,
                  Address v,
                  Address table,
                  int64_t rows,
                  int64_t dim,
                  int64_t stages,
                  float beta,
                  float alpha,
                  Address out,
                  Address tape,
                  int threads) {
  require_common(rows, beta, threads);
  const Network net = network(P, table, dim, stages, beta, alpha);
  const MlpHvp io{required<const float>(x, "x", rows), required<const float>(v, "v", rows),
                  required<float>(out, "out", rows), net.tape(optional<float>(tape, "tape"), rows)};
  net.hvp(io, rows, threads);
}

void bind_mlp_vjp(Address x,
                  Address P,
                  Address p,
                  Address v,
                  Address table,
                  int64_t rows,
                  int64_t dim,
                  int64_t stages,
                  float beta,
                  float alpha,
                  Address gx,
                  Address gP,
                  int64_t numel,
                  Address tape,
                  int threads) {
  require_common(rows, beta, threads);
  const Network net = network(P, table, dim, stages, beta, alpha);
  const MlpVjp io{required<const float>(x, "x", rows), optional<const float>(p, "p"),
                  optional<const float>(v, "v"), optional<float>(gx, "gx"),
                  net.tape(optional<float>(tape, "tape"), rows)};
  float* gradient = required<float>(gP, "gP", numel);
  net.vjp(io, gradient, numel, rows, threads);
}

void bind_pack(const std::vector<Address>& parameters, Address segments, Address P, int threads) {
  require_at_least(1, threads, "threads");
  const auto count = static_cast<int64_t>(parameters.size());
  const auto* segment = required<const Segment>(segments, "segments", count);
  std::vector<const float*> from;
  for (int64_t i = 0; i < count; ++i)
    from.push_back(required<const float>(parameters[i], "parameter", segment[i].size));
  pack(from, segment, required<float>(P, "P", count), threads);
}

void bind_project_gradient(Address P, Address gP, Address segments, int64_t count, int threads) {
  require_at_least(0, count, "count");
  require_at_least(1, threads, "threads");
  project_gradient(required<const float>(P, "P", count), required<float>(gP, "gP", count),
                   required<const Segment>(segments, "segments", count), count, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  using py::arg;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  module.doc() = "CPU kernels of lpn_fast: addresses of contiguous data, sizes, threads.";

  try {
    select_isa_from_environment();
  } catch (const std::invalid_argument& error) {
    throw py::import_error(error.what());
  }
  module.def("isa", [] { return std::string(active_kernels().name); }, "Instruction set in use.");
  module.def("isas", &available_isas, "Instruction sets of this CPU, best first.");
  module.def("set_isa", &select_isa, arg("name"), "Use the named instruction set from now on.");
  module.def(
      "threads_available", [] { return gomp_parallel() != nullptr; },
      "Whether an OpenMP runtime is loaded; without one every call runs on one thread.");

  module.def(
      "advise_huge_pages",
      [](Address address, int64_t bytes) {
        require_at_least(0, bytes, "bytes");
        advise_huge_pages(required<char>(address, "address", bytes), bytes);
      },
      arg("address"), arg("bytes"), "Ask for huge pages; what the memory holds does not change.");

  define_activations<float>(module, "");
  define_activations<BFloat16>(module, "_bfloat16");
  define_narrow(module);
  define_frame(module);
  define_experts(module);
  define_prior(module);

  module.def("mlp_value_prox", &bind_mlp_value_prox, unlocked(), arg("x"), arg("P"), arg("table"),
             arg("rows"), arg("dim"), arg("stages"), arg("beta"), arg("alpha"), arg("psi"), arg("f"),
             arg("tape"), arg("threads"),
             "psi (may be 0) and f = grad psi; z and e into tape, [2, blocks, units, mlp_block_rows], or 0.");
  module.def("mlp_hvp", &bind_mlp_hvp, unlocked(), arg("x"), arg("P"), arg("v"), arg("table"), arg("rows"),
             arg("dim"), arg("stages"), arg("beta"), arg("alpha"), arg("out"), arg("tape"), arg("threads"),
             "out = (Hessian of psi at x) v; tape: mlp_value_prox's at x, or 0.");
  module.def("mlp_vjp", &bind_mlp_vjp, unlocked(), arg("x"), arg("P"), arg("p"), arg("v"), arg("table"),
             arg("rows"), arg("dim"), arg("stages"), arg("beta"), arg("alpha"), arg("gx"), arg("gP"),
             arg("numel"), arg("tape"), arg("threads"),
             "Gradient of sum(p psi + <v, f>) in x and P; p, v and gx may be 0; tape: mlp_value_prox's at x, "
             "or 0.");
  module.attr("mlp_block_rows") = block_rows;

  module.def("pack", &bind_pack, unlocked(), arg("parameters"), arg("segments"), arg("P"), arg("threads"),
             "P from the addresses of its parts, projected; segments: per part its size and whether it is "
             "non-negative.");
  module.def("project_gradient", &bind_project_gradient, unlocked(), arg("P"), arg("gP"), arg("segments"),
             arg("count"), arg("threads"),
             "gP, zero where a descent step would push a clamped entry of P further below zero.");

  define_projector(module);
  define_winograd(module);
}

}  // namespace lpn
