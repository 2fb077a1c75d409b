// Blocks of rows of positions, each with sums of its own for the continued image, which are added in order:
// what comes out does not depend on the number of threads.

#include "prior.h"

#include <algorithm>
#include <utility>

#include "continuation.h"
#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

// As in frame.cpp: kernel - 1 rows of sums more are written than positions computed.
constexpr int64_t least_rows = 8, most_rows = 32, blocks_wanted = 32;

// Partial gradients of a batch at least, as far as there are blocks.
constexpr int64_t chunks_wanted = 32;

}  // namespace

ExplicitPrior::ExplicitPrior(const PriorShape& shape, const PriorParameters& parameters, const Mirror& mirror)
    : parameters_(parameters),
      supports_(parameters.energies, parameters.sets, shape.groups, shape.atoms),
      images_(shape.images),
      groups_(shape.groups),
      group_columns_(round_up(shape.groups, column_multiple)) {
  static_cast<Frame&>(op_) =
      frame_of({shape.images, shape.channels, shape.height, shape.width, shape.atoms, shape.kernel},
               parameters.atoms, 0.0f, mirror, weights_);
  op_.spread_margin = round_up(op_.kernel - 1, column_multiple);
  op_.spread_line = block_rows + 2 * op_.spread_margin;
  op_.column_count = op_.across;
  if (atoms_are_mirrored()) split_atoms();
  all_ = used_ = divided(0, op_.down);
  centred_ = op_;
  if (op_.parts[0] && op_.kernel % 2 && groups_are_mirrored()) leave_out_copies();
}

ExplicitPrior::Rows ExplicitPrior::divided(int64_t first, int64_t count) const {
  const int64_t together = std::clamp(count / blocks_wanted, least_rows, most_rows);
  return {first, first + count, together, (count + together - 1) / together};
}

// Whether atoms come in fours: one, its columns mirrored, its rows, and both.
bool ExplicitPrior::atoms_are_mirrored() const {
  const int64_t k = op_.kernel, lines = op_.channels * k;
  for (int64_t unit = 0; unit < op_.units; ++unit) {
    const float* seed = op_.filters + unit / 4 * 4 * lines * k;
    const float* own = op_.filters + unit * lines * k;
    for (int64_t line = 0; line < lines; ++line) {
      const float* from = seed + (unit & 2 ? line / k * k + k - 1 - line % k : line) * k;
      for (int64_t t = 0; t < k; ++t)
        if (own[line * k + t] != from[unit & 1 ? k - 1 - t : t]) return false;
    }
  }
  return op_.units % 4 == 0;
}

// Coefficients of the sums and differences of pixels opposite one another, along both axes.
void ExplicitPrior::split_atoms() {
  const int64_t k = op_.kernel, plane = k * k, seeds = op_.units / 4, sizes[2] = {k - k / 2, k / 2};
  parts_.resize(seeds * op_.channels * plane);
  float* next = parts_.data();
  for (int64_t part = 0; part < 4; ++part) {
    const float down = part & 2 ? -1.0f : 1.0f, across = part & 1 ? -1.0f : 1.0f;
    op_.parts[part] = next;
    for (int64_t seed = 0; seed < seeds; ++seed)
      for (int64_t t = 0; t < sizes[part & 1]; ++t)
        for (int64_t i = 0; i < sizes[part / 2]; ++i)
          for (int64_t channel = 0; channel < op_.channels; ++channel) {
            const float* tap = op_.filters + (4 * seed * op_.channels + channel) * plane;
            const auto folded = [&](int64_t row) {
              const float one = tap[row * k + t], other = tap[row * k + k - 1 - t];
              return 2 * t == k - 1 ? one : (one + across * other) / 2;
            };
            *next++ = 2 * i == k - 1 ? folded(i) : (folded(i) + down * folded(k - 1 - i)) / 2;
          }
  }
}

// Whether groups come in fours, too: image r sees image q of a seed as the group itself sees image q xor r.
bool ExplicitPrior::groups_are_mirrored() const {
  const int64_t groups = parameters_.sets * groups_;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group / 4 * 4, image = group % 4;
    for (const float* number : {parameters_.slope, parameters_.near, parameters_.far})
      if (number[group] != number[first]) return false;
    const float* own = parameters_.energies + group * op_.units;
    const float* seen = parameters_.energies + first * op_.units;
    for (int64_t unit = 0; unit < op_.units; ++unit)
      if (own[unit] != seen[unit ^ image]) return false;
  }
  return groups_ % 4 == 0;
}

// The patch at a position whose middle lies beyond the border is the mirror image of one inside, and means
// the same to such a prior: that one counts for both.
void ExplicitPrior::leave_out_copies() {
  const int64_t reach = op_.kernel / 2, down = op_.height + op_.kernel - 1;
  centred_weights_.assign(weights_.size(), 0.0f);
  const auto gather = [reach](const float* from, const int64_t* sources, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[sources[i + reach] + reach] += from[i];
  };
  gather(op_.mirror.row_weights, op_.mirror.rows, down, centred_weights_.data());
  gather(op_.mirror.column_weights, op_.mirror.columns, op_.column_count, centred_weights_.data() + down);
  centred_.mirror.row_weights = centred_weights_.data();
  centred_.mirror.column_weights = centred_weights_.data() + down;
  centred_.first_column = reach;
  centred_.column_count = op_.width;
  used_ = divided(reach, op_.height);
}

GroupPotentials ExplicitPrior::potentials_of(int64_t n) const {
  const int64_t set = n / (images_ / parameters_.sets), at = set * groups_;
  return {parameters_.energies + at * op_.units,
          parameters_.slope + at,
          parameters_.near + at,
          parameters_.far + at,
          groups_,
          supports_.of_rows(set),
          supports_.of_columns(set)};
}

// Level 0 for gradients, 1 for Hessian products too, 2 for gradients of parameters too.
class ExplicitPrior::Scratch {
 public:
  Scratch(const ExplicitPrior& prior, int64_t items, int threads, int level) {
    const PriorFrame& frame = prior.op_;
    const int64_t workers = std::clamp<int64_t>(items, 1, threads);
    const int64_t lines = (prior.all_.together + frame.kernel - 1) * frame.channels * frame.line;
    const int64_t row = frame.units * std::max(frame.line, block_rows), tile = frame.units * block_rows,
                  gates = prior.groups_ * block_rows;
    const int64_t columns = level > 1 ? 2 * block_rows * prior.group_columns_ : 0;
    const int64_t patches = level > 1 ? 2 * (block_rows + 1) * frame.columns : 0;
    const int64_t terms = frame.channels * frame.kernel, taps = terms * frame.kernel;
    const bool parts = frame.parts[0];
    const int64_t folded = parts ? terms * frame.line : 0, spread = parts ? taps * frame.spread_line : 0;
    const int64_t operands = parts ? terms * ((frame.kernel + 1) / 2) * block_rows : 0;
    const int64_t each =
        (level ? 2 : 1) * (lines + row + tile + gates + folded) + columns + patches + operands + spread;
    memory_ = allocate_floats(workers * each);
    std::fill(memory_.get(), memory_.get() + workers * each, 0.0f);  // ends of rows are read, never written
    const int64_t most_terms = std::max(terms, prior.supports_.most_runs());
    terms_.resize(workers * most_terms);
    float* next = memory_.get();
    const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    for (int64_t worker = 0; worker < workers; ++worker) {
      PriorScratch scratch{};
      scratch.lines = take(lines);
      scratch.c = take(row);
      scratch.energy = take(tile);
      scratch.gates = take(gates);
      if (level) {
        scratch.v_lines = take(lines);
        scratch.dc = take(row);
        scratch.cross = take(tile);
        scratch.third = take(gates);
        scratch.v_folded = take(folded);
      }
      scratch.folded = take(folded);
      scratch.operands = take(operands);
      scratch.spread = take(spread);
      scratch.columns = take(columns);
      scratch.patches = take(patches);
      scratch.terms = terms_.data() + worker * most_terms;
      scratches_.push_back(scratch);
    }
  }

  const PriorScratch& operator[](int worker) const { return scratches_[worker]; }

 private:
  Floats memory_;
  std::vector<Term> terms_;
  std::vector<PriorScratch> scratches_;
};

void ExplicitPrior::run(const float* x, const float* v, double* value, float* out, int threads) const {
  const Kernels& kernels = active_kernels();
  const int64_t each = used_.blocks, blocks = images_ * each;
  const Folding folding(centred_, used_.together, each, used_.first, used_.end - used_.first);
  const Floats sums = allocate_floats(blocks * folding.sum_size());
  std::vector<double> values(value ? blocks : 0);
  const Scratch scratch(*this, blocks, threads, v ? 1 : 0);
  parallel_for(blocks, 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t n = index / each, block = index % each;
    const PriorRows io{potentials_of(n), x + n * image_size(), v ? v + n * image_size() : nullptr,
                       sums.get() + index * folding.sum_size(), value ? values.data() + index : nullptr};
    kernels.prior_rows(centred_, scratch[worker], io, used_.begin_of(block), used_.end_of(block));
  });
  folding.fold(images_, sums.get(), nullptr, nullptr, nullptr, out, threads);
  for (int64_t n = 0; value && n < images_; ++n) {
    value[n] = 0.0;
    for (int64_t block = n * each; block < (n + 1) * each; ++block) value[n] += values[block];
  }
}

int64_t ExplicitPrior::partial_size() const {
  return op_.units * (op_.columns + group_columns_) + 3 * groups_ * sum_lanes;
}

PriorPartial ExplicitPrior::partial_at(float* memory) const {
  const int64_t numbers = groups_ * sum_lanes;
  float* energies = memory + op_.units * op_.columns;
  float* slope = energies + op_.units * group_columns_;
  return {memory, energies, slope, slope + numbers, slope + 2 * numbers, group_columns_};
}

void ExplicitPrior::parameter_gradient(const PriorGradients& io, int threads) const {
  const Kernels& kernels = active_kernels();
  const int64_t sets = parameters_.sets, blocks = images_ / sets * all_.blocks, size = partial_size();
  const int64_t per_set =
      std::clamp<int64_t>((chunks_wanted + sets - 1) / sets, 1, std::max<int64_t>(1, blocks));
  const Floats partials = allocate_floats(sets * per_set * size);
  const Scratch scratch(*this, sets * per_set, threads, 2);
  parallel_for(sets * per_set, 1, threads, [&](int worker, int64_t chunk, int64_t) {
    const int64_t set = chunk / per_set, part = chunk % per_set;
    float* own = partials.get() + chunk * size;
    std::fill(own, own + size, 0.0f);
    for (int64_t block = part * blocks / per_set; block < (part + 1) * blocks / per_set; ++block) {
      const int64_t n = set * (images_ / sets) + block / all_.blocks, rows_of = block % all_.blocks;
      const PriorGradientRows rows{potentials_of(n), io.x + n * image_size(),
                                   io.v ? io.v + n * image_size() : nullptr, io.v ? 0.0f : io.p[n],
                                   partial_at(own)};
      kernels.prior_gradient_rows(op_, scratch[worker], rows, all_.begin_of(rows_of), all_.end_of(rows_of));
    }
  });
  add_up(partials.get(), per_set, io, threads);
}

// The chunks of every set in order, in double.
void ExplicitPrior::add_up(const float* partials,  // [sets, chunks, partial_size]
                           int64_t chunks,
                           const PriorGradients& io,
                           int threads) const {
  const Kernels& kernels = active_kernels();
  const Frame& frame = op_;
  const int64_t sets = parameters_.sets, size = partial_size(), numbers = groups_ * sum_lanes;
  const int64_t taps = frame.channels * frame.kernel * frame.kernel;
  const int64_t atoms_size = frame.units * frame.columns, energies_size = frame.units * group_columns_;
  std::vector<double> totals(size), atoms(atoms_size);
  for (int64_t set = 0; set < sets; ++set) {
    const MlpPartials parts{partials + set * chunks * size, chunks, size, totals.data()};
    parallel_for(size, sum_lanes * 64, threads,
                 [&](int, int64_t begin, int64_t end) { kernels.mlp_sum_partials(parts, begin, end); });
    for (int64_t i = 0; i < atoms_size; ++i) atoms[i] += totals[i];
    for (int64_t group = 0; group < groups_; ++group)
      for (int64_t atom = 0; atom < frame.units; ++atom)
        io.energies[(set * groups_ + group) * frame.units + atom] =
            static_cast<float>(totals[atoms_size + atom * group_columns_ + group]);
    const auto of_group = [&](float* to, int64_t first) {
      for (int64_t group = 0; group < groups_; ++group) {
        double sum = 0.0;
        for (int64_t lane = 0; lane < sum_lanes; ++lane) sum += totals[first + group * sum_lanes + lane];
        to[set * groups_ + group] = static_cast<float>(sum);
      }
    };
    of_group(io.slope, atoms_size + energies_size);
    of_group(io.near, atoms_size + energies_size + numbers);
    of_group(io.far, atoms_size + energies_size + 2 * numbers);
  }
  for (int64_t i = 0; i < frame.units * taps; ++i)
    io.atoms[i] = static_cast<float>(atoms[i / taps * frame.columns + i % taps]);
}

}  // namespace lpn
