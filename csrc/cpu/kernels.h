// What an instruction set provides: plain structs of pointers and sizes, and one table of functions.
//
// The kernels in isa/ are compiled once per instruction set. This header is all they share with the rest of
// the module, so it holds no inline function: the linker keeps one copy of each of those, perhaps the AVX-512
// one, and a baseline machine would then die on it.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include "experts_kernels.h"
#include "frame_kernels.h"
#include "prior_kernels.h"
#include "projector_kernels.h"

namespace lpn {

// Rows that go through the dense network together. 64 rows x 64 units x 5 stages x 4 B = 82 KB per kept
// quantity, so a whole prox stays in L2; 64 is a multiple of every tile width (4 vectors of 16 lanes at
// most).
constexpr int64_t block_rows = 64;

// Columns of a weight gradient are padded to this, the widest vector of all instruction sets, ...
constexpr int64_t column_multiple = 16;

// ... unless this many or fewer are left over: those are sums over rows, as biases are, kept in so many
// lanes.
constexpr int64_t longest_tail = 4;
constexpr int64_t sum_lanes = 16;

// What bfloat16 tensors hold: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

// ---- activations, channels last: rows = N * H * W, Value is float or BFloat16 -----------------------------

template <class Value>
struct Softplus {
  const Value* u;         // [rows, channels]
  const float* skip;      // [rows, channels] or nullptr
  const float* bias;      // [rows / rows_per_bias, channels] or nullptr
  int64_t rows_per_bias;  // rows that share one bias vector
  Value* out;             // [rows, channels], may be u
  int64_t channels;
  float beta;
};

template <class Value>
struct SlopeMul {
  const Value* a;        // [rows, channels] or nullptr
  const Value* z;        // [rows, channels]
  const float* head;     // [channels] or nullptr
  const float* head_sq;  // [channels] or nullptr
  Value* out;            // [rows, channels], may be a or z
  int64_t channels;
  float beta;
};

template <class Value>
struct Tangent {
  const Value* a;  // [rows, channels]
  const float* b;  // [rows, channels] or nullptr
  const Value* z;  // [rows, channels]
  Value* out;      // [rows, channels], may be a or z
  int64_t channels;
  float beta;
};

template <class Value>
struct Adjoint {
  const Value* a;        // [rows, channels] or nullptr
  const Value* z;        // [rows, channels]
  const Value* e;        // [rows, channels]
  const Value* dz;       // [rows, channels]
  const float* head_sq;  // [channels] or nullptr
  Value* out;            // [rows, channels], may be a, z, e or dz
  int64_t channels;
  float beta;
};

template <class Value>
struct Heads {
  const Value* z;        // [rows, channels]
  const float* head;     // [channels] or nullptr
  const float* head_sq;  // [channels] or nullptr
  int64_t channels;
};

template <class Value>
struct ActivationKernels {
  // Rows begin <= r < end.
  void (*softplus)(const Softplus<Value>&, int64_t begin, int64_t end);
  void (*slope_mul)(const SlopeMul<Value>&, int64_t begin, int64_t end);
  void (*tangent)(const Tangent<Value>&, int64_t begin, int64_t end);
  void (*adjoint)(const Adjoint<Value>&, int64_t begin, int64_t end);
  double (*heads)(const Heads<Value>&, int64_t begin, int64_t end);
};

// ---- products with panels, see isa/panels.h --------------------------------------------------------------

// Columns of a panel: two vectors of the widest instruction set.
constexpr int64_t panel_width = 32;

struct PanelProduct {
  // Element (row, k) at row * row_stride + k * depth_stride, for k within a segment of `depth`; the segments
  // of a row start segment_step apart, and their k count on in the panels.
  const float* a;
  int64_t row_stride;
  int64_t depth_stride;
  int64_t segments;
  int64_t segment_step;
  const float* panels;  // element (k, column) at column / 32 * panel_step + k * depth_step + column % 32
  int64_t panel_step;
  int64_t depth_step;
  int64_t depth;    // in one segment
  int64_t columns;  // multiple of column_multiple
  float* out;       // [rows, out_stride]
  int64_t out_stride;
  bool add;  // to what `out` holds
};

// out += a^T b
struct GradientProduct {
  const float* a;  // [depth, a_stride], its first `rows` columns
  int64_t a_stride;
  const float* b;  // [depth, b_stride], its first `columns` columns
  int64_t b_stride;
  int64_t depth;
  int64_t columns;  // multiple of column_multiple
  float* out;       // [rows, columns]
};

// ---- correlations of few input channels, see isa/narrow.h
// ---------------------------------------------------

struct Narrow {
  const float* image;  // [images, padded_height, padded_width, channels]: x with zeros around, or nullptr
  int64_t image_step;  // floats from one image to the next
  int64_t line;        // floats from one padded row to the next
  int64_t channels;
  int64_t kernel;
  int64_t stride;
  int64_t out_height, out_width;
  int64_t units;
};

template <class Value>
struct NarrowStage {
  const float* panels;  // [ceil(units / 32)][kernel^2 channels][32]
  const Value* core;    // [images, out_height, out_width, units] or nullptr: what the product is added to
  const float* bias;    // [images or 1, units] or nullptr
  int64_t bias_step;    // units, or 0 where all images share it
  const Value* z;       // as core; nullptr: out = softplus(u), else out = u s(z)
  Value* out;           // as core, may be core
  float beta;
};

template <class Value>
struct NarrowAdjoint {
  const Value* e;       // [images, out_height, out_width, units]
  const float* panels;  // [ceil(columns / 32)][units][32]
  int64_t columns;      // kernel^2 channels, rounded up to column_multiple
  float* block;         // [(rows - 1) stride + kernel, line] of padded pixels: where these rows end up
  float* scratch;       // [narrow_pixels, units + columns]
};

template <class Value>
struct ThinGradient {
  const Value* e;   // [images, out_height, out_width, units]
  int64_t columns;  // units, rounded up to column_multiple
  float* sum;       // [kernel^2 channels, columns], added to
  float* scratch;   // [narrow_pixels, kernel^2 channels + columns]
};

// Pixels whose patches, or gradients of patches, lie in scratch together.
constexpr int64_t narrow_pixels = 96;

template <class Value>
struct ThinKernels {
  // Output rows begin <= r < end, counted through all images; of one image for the adjoint.
  void (*stage)(const Narrow&, const NarrowStage<Value>&, int64_t begin, int64_t end);
  void (*adjoint)(const Narrow&, const NarrowAdjoint<Value>&, int64_t begin, int64_t end);
  void (*gradient)(const Narrow&, const ThinGradient<Value>&, int64_t begin, int64_t end);
};

// ---- 3 x 3 correlations by minimal filtering, see isa/winograd.h -----------------------------------------

struct Winograd {
  float* pixels;  // [images, height, width, channels] or [images, out_height, out_width, channels]
  float* planes;  // [36 or 81 planes, plane]: each starts with [tiles of the group, channels]
  int64_t plane;  // floats from one plane to the next
  int64_t channels;
  int64_t stride;  // 1 or 2
  int64_t height, width;
  int64_t out_height, out_width;
  int64_t tile_rows, tile_columns;  // in one image
  int64_t first;                    // tile, counted through all images, that comes first in the planes
  float* outside;  // [channels]: what is read beyond the border, zeros, or where what belongs there is lost
};

struct WinogradWeights {
  const float* core;      // [units, channels, 3, 3]
  float* forward_panels;  // [planes][units / 32][channels][32], the last panel perhaps half full; or nullptr
  float* adjoint_panels;  // [planes][channels / 32][units][32] or nullptr
  int64_t units;
  int64_t channels;
  int64_t stride;
};

struct WinogradGradient {
  float* core;          // [units, channels, 3, 3]
  const float* planes;  // [planes, units, channels]
  int64_t units;
  int64_t channels;
  int64_t stride;
};

// ---- dense network ----------------------------------------------------------------------------------------

struct MlpStage {
  int64_t width;         // H_l
  int64_t first_unit;    // units of all stages before this one
  const float* core;     // [H_l, H_{l-1}] or nullptr
  const float* skip;     // [H_l, d] or nullptr
  const float* bias;     // [H_l] or nullptr
  const float* head;     // [outputs] or nullptr
  const float* head_sq;  // [H_l] or nullptr
  bool competing;        // for one z_l, see isa/competing.h; frame kernels only, and their last stage
  int64_t outputs;       // z_l of a row: H_l, or 1 where the units compete
  // Where this stage's gradient starts in a partial gradient.
  int64_t matrix_at;   // [H_l, columns]: the core's columns, then the skip's, then padding
  int64_t columns;     // multiple of column_multiple
  int64_t tail_at;     // [H_l, tail, sum_lanes]: the columns that follow
  int64_t tail;        // at most longest_tail
  int64_t bias_at;     // [H_l, sum_lanes]
  int64_t head_at;     // [outputs, sum_lanes]
  int64_t head_sq_at;  // [H_l, sum_lanes]
};

struct Mlp {
  const MlpStage* stages;  // [stage_count]
  int64_t stage_count;
  int64_t dim;
  int64_t units;          // all stages together
  const float* linear;    // [d] or nullptr
  const float* constant;  // [1] or nullptr
  float beta;
  float alpha;
  int64_t linear_at;    // [d, sum_lanes] in a partial gradient
  int64_t constant_at;  // [sum_lanes] in a partial gradient
};

// One factor pair of a product: sum over k of  weights[unit, k] * operand[k, lane].
struct Term {
  const float* weights;    // element (unit, k) at unit * unit_stride + k * depth_stride
  int64_t unit_stride;     // swapping the two strides reads the transposed matrix
  int64_t depth_stride;    //
  const float* operand;    // [depth, operand_stride]
  int64_t operand_stride;  // lanes from one k to the next
  int64_t depth;
};

// Scratch of one worker. Rows lie along vector lanes: [unit][row in block]. Units of all stages follow each
// other.
struct MlpBlock {
  int64_t row_lanes;  // rows of this block, rounded up to whole vectors: what the sweeps compute
  float* x;           // [d, block_rows]
  float* v;           // [d, block_rows]
  float* p;           // [block_rows]
  float* result;      // [d, block_rows]
  float* z;           // [units, block_rows]
  float* s;           // [units, block_rows]   slope of the softplus
  float* curvature;   // [units, block_rows]   beta (1 - s), then beta (1 - s) e, then e dz q
  float* e;           // [units, block_rows]
  float* dz;          // [units, block_rows]
  float* delta;       // [units, block_rows]
  float* dz_columns;  // [block_rows, columns of the widest stage]   dz_{l-1} and v with rows outermost
  float* z_columns;   // [block_rows, columns of the widest stage]   z_{l-1} and x with rows outermost
  Term* terms;        // [max(stage_count, 2)]
};

// What mlp_prox leaves behind, so that the sweeps after it need not repeat it: block by block as in MlpBlock.
struct MlpTape {
  float* z;  // [blocks, units, block_rows] or nullptr
  float* e;  // [blocks, units, block_rows] or nullptr, as z
};

struct MlpProx {
  const float* x;  // [rows, d]
  float* psi;      // [rows] or nullptr
  float* f;        // [rows, d]
  MlpTape tape;    // written where there is one
};

struct MlpHvp {
  const float* x;  // [rows, d]
  const float* v;  // [rows, d]
  float* out;      // [rows, d]
  MlpTape tape;    // from mlp_prox at x, or nothing
};

struct MlpVjp {
  const float* x;  // [rows, d]
  const float* p;  // [rows] or nullptr, cotangent of psi
  const float* v;  // [rows, d] or nullptr, cotangent of f
  float* gx;       // [rows, d] or nullptr
  MlpTape tape;    // from mlp_prox at x, or nothing
};

// Partial gradients of the chunks of a batch, and their sum.
struct MlpPartials {
  const float* values;  // [chunks, size]
  int64_t chunks;
  int64_t size;
  double* totals;  // [size]
};

// ---- the table --------------------------------------------------------------------------------------------

struct Kernels {
  const char* name;
  ActivationKernels<float> activations_float;
  ActivationKernels<BFloat16> activations_bfloat16;
  // Rows begin <= r < end.
  void (*panel_product)(const PanelProduct&, int64_t begin, int64_t end);
  void (*gradient_product)(const GradientProduct&, int64_t begin, int64_t end);
  ThinKernels<float> narrow_float;
  ThinKernels<BFloat16> thin_bfloat16;
  // Tiles of the group; for the adjoint of the inputs of one row of tiles.
  void (*winograd_inputs)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_inputs_adjoint)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_outputs)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_outputs_adjoint)(const Winograd&, int64_t begin, int64_t end);
  // Groups of 16 units of the core.
  void (*winograd_weights)(const WinogradWeights&, int64_t begin, int64_t end);
  // Units of the core.
  void (*winograd_weights_adjoint)(const WinogradGradient&, int64_t begin, int64_t end);
  // Rows first <= r < first + count of the dense network, count <= block_rows.
  void (*mlp_prox)(const Mlp&, const MlpBlock&, const MlpProx&, int64_t first, int64_t count);
  void (*mlp_hvp)(const Mlp&, const MlpBlock&, const MlpHvp&, int64_t first, int64_t count);
  // Adds the block's parameter gradient to `partial`.
  void (*mlp_vjp)(const Mlp&, const MlpBlock&, const MlpVjp&, int64_t first, int64_t count, float* partial);
  // Entries begin <= i < end of the partial gradients.
  void (*mlp_sum_partials)(const MlpPartials&, int64_t begin, int64_t end);
  // Rows begin <= r < end of the coefficients of one image, under gates of single pixels.
  void (*frame_prox)(const Frame&, const FrameScratch&, const FrameProx&, int64_t begin, int64_t end);
  void (*frame_second)(const Frame&, const FrameScratch&, const FrameSecond&, int64_t begin, int64_t end);
  // The same where experts compete in contexts.
  void (*experts_up)(
      const Frame&, const Experts&, const ExpertScratch&, const ExpertsUp&, int64_t begin, int64_t end);
  void (*experts_down)(
      const Frame&, const Experts&, const ExpertScratch&, const ExpertsDown&, int64_t begin, int64_t end);
  // Rows begin <= r < end.
  void (*compete)(const Competition&, int64_t begin, int64_t end);
  // One map, [height, width]; line: [width + side + column_multiple].
  void (*average_map)(const Average&, const float* from, float* to, float* line);
  // Rows begin <= r < end of the positions of patches of one image.
  void (*prior_rows)(const PriorFrame&, const PriorScratch&, const PriorRows&, int64_t begin, int64_t end);
  void (*prior_gradient_rows)(
      const PriorFrame&, const PriorScratch&, const PriorGradientRows&, int64_t begin, int64_t end);
  // Lines of the parallel-beam projector, in both precisions.
  ResampleKernels<float> resample_float;
  ResampleKernels<double> resample_double;
};

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace lpn
