#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace lpn {
namespace {

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  // These ask the operating system too: a CPU whose wide registers are not saved on a switch counts as
  // without.
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    found.push_back(&avx512_kernels);
  if (fma && __builtin_cpu_supports("avx2")) found.push_back(&avx2_kernels);
#endif
  found.push_back(&baseline_kernels);
  return found;
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> kernels{available_kernels().front()};
  return kernels;
}

void select(const std::string& name, const char* argument) {
  std::string choices;
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->name) return active().store(kernels);
    choices += (choices.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::invalid_argument(std::string(argument) + " must be one of " + choices + " on this CPU, got '" +
                              name + "'");
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->name);
  return names;
}

void select_isa(const std::string& name) { select(name, "isa"); }

void select_isa_from_environment() {
  const char* name = std::getenv("LPN_FAST_ISA");
  if (name && *name) select(name, "LPN_FAST_ISA");
}

const Kernels& active_kernels() { return *active().load(); }

}  // namespace lpn
