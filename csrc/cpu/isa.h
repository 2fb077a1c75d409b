// Which instruction set runs: the best this CPU has, unless LPN_FAST_ISA or a call of select_isa says
// otherwise.

#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace lpn {

// Names that select_isa accepts on this CPU, best first.
std::vector<std::string> available_isas();

// Throws std::invalid_argument naming the choices.
void select_isa(const std::string& name);

// Reads LPN_FAST_ISA; throws std::invalid_argument if it names nothing this CPU has.
void select_isa_from_environment();

const Kernels& active_kernels();

}  // namespace lpn
