#include "mlp_bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "mlp_launch.h"

namespace py = pybind11;

namespace lpn {
namespace {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Precision precision_named(const std::string& name) {
  if (name == "fp32") return Precision::fp32;
  if (name == "tf32") return Precision::tf32;
  if (name == "fp16") return Precision::fp16;
  if (name == "bf16") return Precision::bf16;
  throw std::invalid_argument("precision must be fp32, tf32, fp16 or bf16, got '" + name + "'");
}

Operation operation_named(const std::string& name) {
  if (name == "prox") return Operation::prox;
  if (name == "hvp") return Operation::hvp;
  if (name == "vjp") return Operation::vjp;
  if (name == "solve") return Operation::solve;
  throw std::invalid_argument("operation must be prox, hvp, vjp or solve, got '" + name + "'");
}

// A network whose parameters lie in one vector P, and how it is laid over devices.
class MlpNetwork {
 public:
  MlpNetwork(std::uintptr_t table,  // address of int64 [6 stages + 2], see make_problem; read here only
             std::int64_t dim,
             std::int64_t stages,
             std::int64_t parameter_count,
             double beta,
             double alpha)
      : problem_(make_problem(at<const std::int64_t>(table), dim, stages, parameter_count, beta, alpha)) {}

  Plan plan(const std::string& operation,
            const std::string& precision,
            std::int64_t rows,
            const DeviceLimits& limits) const {
    return make_plan(problem_, precision_named(precision), operation_named(operation), rows, limits);
  }

  void run(const std::string& operation,
           const std::string& precision,
           const Plan& plan,
           std::uintptr_t parameters,
           std::uintptr_t packed,
           std::uintptr_t partial,
           std::uintptr_t spilled,
           std::uintptr_t x,
           std::uintptr_t v,
           std::uintptr_t p,
           std::uintptr_t psi,
           std::uintptr_t f,
           std::uintptr_t hv,
           std::uintptr_t gradient,
           std::int64_t rows,
           int device,
           std::uintptr_t stream) const {
    const MlpCall call{problem_,
                       at<const float>(parameters),
                       at<unsigned char>(packed),
                       at<const float>(x),
                       at<const float>(v),
                       at<const float>(p),
                       at<float>(psi),
                       at<float>(f),
                       at<float>(hv),
                       at<float>(partial),
                       at<unsigned char>(spilled),
                       rows};
    mlp_run(call, precision_named(precision), operation_named(operation), plan, at<float>(gradient), device,
            at<void>(stream));
  }

  void solve(const Plan& plan,
             std::uintptr_t parameters,
             std::uintptr_t packed,
             std::uintptr_t spilled,
             std::uintptr_t z,
             std::uintptr_t start,
             std::uintptr_t strength,
             std::uintptr_t u,
             std::uintptr_t f,
             std::uintptr_t psi,
             std::uintptr_t residual,
             std::uintptr_t iterations,
             std::uintptr_t verdict,
             std::int64_t rows,
             double tol,
             double radius,
             int max_iter,
             int device,
             std::uintptr_t stream) const {
    const MlpCall mlp{problem_,
                      at<const float>(parameters),
                      at<unsigned char>(packed),
                      at<const float>(z),
                      at<const float>(start),
                      at<const float>(strength),
                      at<float>(psi),
                      at<float>(f),
                      at<float>(u),
                      nullptr,
                      at<unsigned char>(spilled),
                      rows};
    const SolveCall call{
        mlp,     at<double>(residual), at<std::int64_t>(iterations), at<std::int64_t>(verdict), tol, radius,
        max_iter};
    mlp_solve(call, plan, device, at<void>(stream));
  }

 private:
  MlpProblem problem_;
};

}  // namespace

void bind_mlp(py::module_& module) {
  py::class_<DeviceLimits>(module, "DeviceLimits", "What a plan has to know of a device; sizes in bytes.")
      .def(py::init<int, int, int>(), py::arg("processors"), py::arg("shared_per_block"),
           py::arg("shared_per_processor"))
      .def_readonly("processors", &DeviceLimits::processors)
      .def_readonly("shared_per_block", &DeviceLimits::shared_per_block)
      .def_readonly("shared_per_processor", &DeviceLimits::shared_per_processor);
  py::class_<Plan>(module, "Plan", "How a call is laid over a device; sizes in bytes.")
      .def_readonly("row_tiles", &Plan::row_tiles)
      .def_readonly("column_tiles", &Plan::column_tiles)
      .def_readonly("team", &Plan::team)
      .def_readonly("tiles", &Plan::tiles)
      .def_readonly("resident", &Plan::resident)
      .def_readonly("spilled", &Plan::spilled)
      .def_readonly("warps", &Plan::warps)
      .def_readonly("blocks", &Plan::blocks)
      .def_readonly("shared_bytes", &Plan::shared_bytes)
      .def_readonly("packed_bytes", &Plan::packed_bytes)
      .def_readonly("partial_bytes", &Plan::partial_bytes)
      .def_readonly("spilled_bytes", &Plan::spilled_bytes);
  py::class_<MlpNetwork>(module, "MlpNetwork", "A dense network. Tensors are addresses, 0 for none.")
      .def(py::init<std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, double, double>(),
           py::arg("table"), py::arg("dim"), py::arg("stages"), py::arg("parameter_count"), py::arg("beta"),
           py::arg("alpha"))
      .def("plan", &MlpNetwork::plan, py::arg("operation"), py::arg("precision"), py::arg("rows"),
           py::arg("limits"))
      .def("run", &MlpNetwork::run)
      .def("solve", &MlpNetwork::solve);
  module.def(
      "mlp_prepare",
      [](int device, const std::string& precision) { mlp_prepare(device, precision_named(precision)); },
      py::arg("device"), py::arg("precision"),
      "Load the kernels of a precision and let them have a device's shared memory; outside a graph capture.");
  module.def("mlp_limits", &mlp_limits, py::arg("device"), "DeviceLimits of a prepared device.");
}

}  // namespace lpn
