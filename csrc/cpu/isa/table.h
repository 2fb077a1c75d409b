// The table of one instruction set. Constant-initialised: loading the module must not execute a single
// instruction of a unit whose instruction set this CPU may lack.

#pragma once

#include "../kernels.h"
#include "activations.h"
#include "experts.h"
#include "frame.h"
#include "frame_second.h"
#include "mlp_blocks.h"
#include "narrow.h"
#include "panels.h"
#include "prior.h"
#include "prior_gradient.h"
#include "projector.h"
#include "windows.h"
#include "winograd.h"

namespace lpn {
namespace {

constexpr Kernels kernels_named(const char* name) {
  return {name,
          activation_kernels<float>(),
          activation_kernels<BFloat16>(),
          panel_product,
          gradient_product,
          narrow_kernels<float>(),
          narrow_kernels<BFloat16>(),
          winograd_inputs,
          winograd_inputs_adjoint,
          winograd_outputs,
          winograd_outputs_adjoint,
          winograd_weights,
          winograd_weights_adjoint,
          mlp_prox_block,
          mlp_hvp_block,
          mlp_vjp_any,
          sum_partials,
          frame_prox,
          frame_second,
          experts_up,
          experts_down,
          compete,
          average_map,
          prior_rows,
          prior_gradient_rows,
          resample_kernels<float>(),
          resample_kernels<double>()};
}

}  // namespace
}  // namespace lpn
