// Matrices of minimal filtering, 4 outputs at a time; printed and derived by csrc/tools/winograd_matrices.py.
//
//   y = outputs [(weights g) o (inputs d)]     full: 3 taps, 6 products      odd: 2 taps, 5 products

#pragma once

namespace lpn {
namespace {

constexpr float full_outputs[4][6] = {
    {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 0.0f},
    {0.0f, 0.75f, -0.75f, 1.5f, -1.5f, 0.0f},
    {0.0f, 0.5625f, 0.5625f, 2.25f, 2.25f, 0.0f},
    {0.0f, 0.421875f, -0.421875f, 3.375f, -3.375f, 1.0f},
};
constexpr float full_weights[6][3] = {
    {0.790123457f, 0.0f, 0.0f},
    {-0.526748971f, -0.395061728f, -0.296296296f},
    {-0.526748971f, 0.395061728f, -0.296296296f},
    {0.131687243f, 0.197530864f, 0.296296296f},
    {0.131687243f, -0.197530864f, 0.296296296f},
    {0.0f, 0.0f, 1.0f},
};
constexpr float full_inputs[6][6] = {
    {1.265625f, 0.0f, -2.8125f, 0.0f, 1.0f, 0.0f}, {0.0f, -1.6875f, -2.25f, 0.75f, 1.0f, 0.0f},
    {0.0f, 1.6875f, -2.25f, -0.75f, 1.0f, 0.0f},   {0.0f, -0.84375f, -0.5625f, 1.5f, 1.0f, 0.0f},
    {0.0f, 0.84375f, -0.5625f, -1.5f, 1.0f, 0.0f}, {0.0f, 1.265625f, 0.0f, -2.8125f, 0.0f, 1.0f},
};
constexpr float odd_outputs[4][5] = {
    {1.0f, 1.0f, 1.0f, 1.0f, 0.0f},
    {0.0f, 0.75f, -0.75f, 1.5f, 0.0f},
    {0.0f, 0.5625f, 0.5625f, 2.25f, 0.0f},
    {0.0f, 0.421875f, -0.421875f, 3.375f, 1.0f},
};
constexpr float odd_weights[5][2] = {
    {1.18518519f, 0.0f},
    {-1.18518519f, -0.888888889f},
    {-0.395061728f, 0.296296296f},
    {0.395061728f, 0.592592593f},
    {0.0f, 1.0f},
};
constexpr float odd_inputs[5][5] = {
    {0.84375f, -0.5625f, -1.5f, 1.0f, 0.0f}, {0.0f, -1.125f, -0.75f, 1.0f, 0.0f},
    {0.0f, 1.125f, -2.25f, 1.0f, 0.0f},      {0.0f, -0.5625f, 0.0f, 1.0f, 0.0f},
    {0.0f, 0.84375f, -0.5625f, -1.5f, 1.0f},
};

}  // namespace
}  // namespace lpn
