// Per row:  t u + (1 - t) f(u) = z,  t = 0 inverts f, by truncated Newton steps, in one launch.
//
//   r(u) = t u + (1 - t) f(u) - z = grad phi,     phi = t/2 |u|^2 + (1 - t) psi(u) - <z, u>, convex
//   ((t + mu) I + (1 - t) H(u)) d = -r(u)  by conjugate gradients up to eta |r|,  mu, eta -> 0 with |r|
//
// The same equation, verdicts, line search and constants as lpn_fast/ops/solve (descent.py, newton.py,
// line_search.py, linear.py), where they are explained; here every team works on its 16 rows until each has
// its verdict. f, psi and the residual are of float32 grade, sums along a row are double, products with H
// are TF32. A row that is done stays where it is and costs nothing but its share of the team.
//
// Vectors of a row lie in shared memory, written by the warp of the team that owns the entries and read by
// all: every warp sums all of them in the same order, has the same numbers, and decides the same.

#pragma once

#include <math.h>

#include "mlp_prox.h"

namespace lpn {

namespace solver {

constexpr double progress = 0.95;   // a residual below this fraction of the best one is progress
constexpr int patience = 12;        // steps without progress that end a row
constexpr double damping = 1e-2;    // mu = damping min(1, rho) where t = 0
constexpr double loosest = 0.5;     // eta = min(loosest, sqrt(rho))
constexpr int most_products = 100;  // with H, per step
constexpr double overshoot = 0.5;   // fraction of |g(0)| that the slope may have behind the minimum
constexpr double too_short = 0.9;   // fraction of |g(0)| that the slope keeps after a step that was too short
constexpr double stretch = 10.0;
constexpr int most_stretches = 4;
constexpr int most_trials = 12;
constexpr double float_eps = 1.1920929e-7;
constexpr double phi_rounding = 8.0 * float_eps;  // relative to the terms of phi

enum Vector { target, base, point, image, residual, direction, cg_residual, cg_direction, cg_product = base };

enum class Trial { settled, first, stretching, shrinking, last };

}  // namespace solver

// What is known of the row g + 8 half; the four lanes of a row all hold it.
struct Row {
  double t, scale, reach, best, rho;
  double phi, rounding;  // at the last evaluation
  float psi;
  int waited;
  bool active;
  // conjugate gradients
  double rr, cg_target;
  bool cg_active;
  // line search along u + step d
  double slope, phi0, rounding0, step, good_step;
  int tries;
  solver::Trial trial;
  bool moved;
};

template <class K>
struct Solver {
  static_assert(K::row_tiles == 1, "a team solves for 16 rows");
  using Rows = Sweeps<K, Operation::solve, Fp32Once>;

  const SolveCall& call;
  Rows& rows;
  float* memory;  // [vectors][dim_tiles][32 lanes][4]
  Row row[2];

  LPN_DEVICE float* vector(solver::Vector which, int tile) const {
    return memory + ((which * rows.dim_tiles() + tile) * simt::lanes + simt::lane()) * 4;
  }
  // Calls body(tile, half, index of the entry in a vector's four) for this lane's entries, whichever warp
  // owns them; padding holds zeros.
  template <class Body>
  LPN_DEVICE void each(Body body) const {
    for (int tile = 0; tile < rows.dim_tiles(); ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) body(tile, i >> 1, i);
  }
  // The same for entries that this warp owns. What is written is for all to read when it returns.
  template <class Body>
  LPN_DEVICE void update(Body body) const {
    Rows::sync();
    for (int tile = 0; tile < rows.dim_tiles(); ++tile) {
      if (!Rows::mine(tile)) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) body(tile, i >> 1, i);
    }
    Rows::sync();
  }
  LPN_DEVICE float& at(solver::Vector which, int tile, int i) const { return vector(which, tile)[i]; }

  LPN_DEVICE void dot(double (&result)[2], solver::Vector a, solver::Vector b) const {
    double part[2] = {0.0, 0.0};
    each([&](int tile, int half, int i) {
      part[half] += static_cast<double>(at(a, tile, i)) * at(b, tile, i);
    });
    result[0] = Rows::row_sum(part[0]);
    result[1] = Rows::row_sum(part[1]);
  }

  LPN_DEVICE static bool is_finite(double value) { return value - value == 0.0; }
  LPN_DEVICE static double root(double value) { return sqrt(value); }

  // A vector as an operand.
  LPN_DEVICE void put(typename Rows::Element* to, solver::Vector which) const {
    update([&](int tile, int half, int i) {
      if (i % 2 == 0) rows.put(to, 0, 0, tile, half, at(which, tile, i), at(which, tile, i + 1));
    });
  }

  // Sums over the columns of all warps of the team, from each warp's parts.
  LPN_DEVICE void over_team(double (&sums)[2], const float (&parts)[1][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = Rows::row_sum(parts[0][half]);
      const int row_here = half * 8 + (simt::lane() >> 2);
      if ((simt::lane() & 3) == 0) rows.parts[Rows::member() * K::rows + row_here] = sum;
    }
    Rows::sync();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] = 0.0;
      for (int member = 0; member < K::team; ++member)
        sums[half] += rows.parts[member * K::rows + half * 8 + (simt::lane() >> 2)];
    }
  }

  // f, psi, r, phi at `point`, and what products with H need
  LPN_DEVICE void evaluate() {
    using namespace solver;
    const MlpProblem& problem = call.mlp.problem;
    const double inverse_kappa = 1.0 / (problem.beta * log2_e);
    const int t = simt::lane() & 3;
    put(rows.input, point);
    float parts[1][2] = {{0.0f, 0.0f}};
    rows.value(true, parts);
    double heads[2], psi[2] = {0.0, 0.0};
    over_team(heads, parts);
    rows.prox();
    update([&](int tile, int half, int i) {
      const int column = tile * block_side + 2 * t + (i & 1);
      const bool exists = column < problem.dim;
      const float u = at(point, tile, i), c = exists ? linear_term(call.mlp, column) : 0.0f;
      const float sum = rows.unscaled(rows.sum_at(0, tile)[i]);
      const float f = exists ? sum * static_cast<float>(inverse_kappa) + c + problem.alpha * u : 0.0f;
      const auto strength = static_cast<float>(row[half].t);
      at(image, tile, i) = f;
      at(residual, tile, i) = f + strength * (u - f) - at(target, tile, i);
    });
    each([&](int tile, int half, int i) {
      const int column = tile * block_side + 2 * t + (i & 1);
      const float u = at(point, tile, i), c = column < problem.dim ? linear_term(call.mlp, column) : 0.0f;
      psi[half] += static_cast<double>(u) * (c + 0.5 * problem.alpha * u);
    });
    double uu[2], zu[2];
    dot(uu, point, point);
    dot(zu, target, point);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Row& here = row[half];
      here.psi = static_cast<float>(heads[half] * inverse_kappa + Rows::row_sum(psi[half]) +
                                    constant_term(call.mlp));
      const double terms[3] = {0.5 * here.t * uu[half], (1.0 - here.t) * here.psi, -zu[half]};
      here.phi = terms[0] + terms[1] + terms[2];
      here.rounding = phi_rounding * (fabs(terms[0]) + fabs(terms[1]) + fabs(terms[2]));
    }
  }

  // direction = the solution of the linearised equation, as far as it is needed
  LPN_DEVICE void find_direction() {
    using namespace solver;
    update([&](int tile, int half, int i) {
      const float r = row[half].active ? -at(residual, tile, i) : 0.0f;
      at(cg_residual, tile, i) = r;
      at(cg_direction, tile, i) = r;
      at(direction, tile, i) = 0.0f;
    });
    double rr[2], shift[2];
    dot(rr, cg_residual, cg_residual);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Row& here = row[half];
      const double eta = root(here.rho) < loosest ? root(here.rho) : loosest;
      here.rr = rr[half];
      here.cg_target = eta * eta * rr[half];
      here.cg_active = here.active && rr[half] > here.cg_target && is_finite(rr[half]);
      shift[half] = here.t == 0.0 ? damping * (here.rho < 1.0 ? here.rho : 1.0) : here.t;
    }
    const double inverse_kappa = 1.0 / (call.mlp.problem.beta * log2_e);
    for (int k = 0; k < most_products; ++k) {
      if (!simt::any(row[0].cg_active || row[1].cg_active)) return;
      put(rows.direction, cg_direction);
      rows.tangent();
      for (int l = rows.stages() - 1; l >= 0; --l) rows.adjoint(l);
      update([&](int tile, int half, int i) {  // (shift + (1 - t) H) p
        const float p = at(cg_direction, tile, i);
        const float hp = rows.unscaled(rows.sum_at(0, tile)[i]) * static_cast<float>(inverse_kappa) +
                         call.mlp.problem.alpha * p;
        at(cg_product, tile, i) =
            static_cast<float>(shift[half]) * p + static_cast<float>(1.0 - row[half].t) * hp;
      });
      double pq[2], pp[2], step[2];
      dot(pq, cg_direction, cg_product);
      dot(pp, cg_direction, cg_direction);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        row[half].cg_active = row[half].cg_active && pq[half] > float_eps * pp[half];
        step[half] = row[half].cg_active ? row[half].rr / pq[half] : 0.0;
      }
      update([&](int tile, int half, int i) {
        const auto s = static_cast<float>(step[half]);
        if (!row[half].cg_active) return;
        at(direction, tile, i) += s * at(cg_direction, tile, i);
        at(cg_residual, tile, i) -= s * at(cg_product, tile, i);
      });
      dot(rr, cg_residual, cg_residual);
      float turn[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Row& here = row[half];
        turn[half] = here.cg_active ? static_cast<float>(rr[half] / here.rr) : 0.0f;
        if (here.cg_active) here.rr = rr[half];
        here.cg_active = here.cg_active && here.rr > here.cg_target;
      }
      update([&](int tile, int half, int i) {
        at(cg_direction, tile, i) = at(cg_residual, tile, i) + turn[half] * at(cg_direction, tile, i);
      });
    }
  }

  // point = base + step direction, evaluated, the step such that phi falls; `moved` says whether there was
  // one
  LPN_DEVICE void search() {
    using namespace solver;
    double slope[2], size[2];
    dot(slope, residual, direction);
    dot(size, residual, residual);
    bool downhill[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) downhill[half] = slope[half] < 0.0 && is_finite(slope[half]);
    update([&](int tile, int half, int i) {
      if (!downhill[half]) at(direction, tile, i) = -at(residual, tile, i);
      at(base, tile, i) = at(point, tile, i);
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Row& here = row[half];
      if (!downhill[half]) slope[half] = -size[half];
      here.slope = slope[half];
      here.phi0 = here.phi;
      here.rounding0 = here.rounding;
      here.step = here.active ? 1.0 : 0.0;
      here.good_step = 0.0;
      here.tries = 0;
      here.moved = here.active;
      here.trial = here.active ? Trial::first : Trial::last;
    }
    do {
      update([&](int tile, int half, int i) {
        const float start = at(base, tile, i);
        at(point, tile, i) = row[half].step == 0.0
                                 ? start
                                 : start + static_cast<float>(row[half].step) * at(direction, tile, i);
      });
      evaluate();
      dot(slope, residual, direction);
      judge(row[0], slope[0]);
      judge(row[1], slope[1]);
    } while (simt::any(row[0].trial != Trial::settled || row[1].trial != Trial::settled));
  }

  // What follows from the slope at the step just tried. A settled row is evaluated again where it is.
  LPN_DEVICE static void judge(Row& here, double slope) {
    using namespace solver;
    const bool finite = is_finite(here.phi);
    const bool falls = here.phi <= here.phi0 + here.rounding0 + here.rounding;
    const bool kept = finite && (slope <= 0.0 || (slope <= -overshoot * here.slope && falls));
    const bool further = slope < too_short * here.slope && here.tries < most_stretches;
    switch (here.trial) {
      case Trial::settled:
        return;
      case Trial::last:
        here.trial = Trial::settled;
        return;
      case Trial::first:
      case Trial::stretching:
        if (here.trial == Trial::first ? kept : finite && slope <= 0.0) {
          here.trial = further ? Trial::stretching : Trial::settled;
          if (!further) return;
          here.good_step = here.step;
          here.step *= stretch;
          ++here.tries;
          return;
        }
        if (here.trial == Trial::stretching) {
          here.step = here.good_step;
          here.trial = Trial::last;
          return;
        }
        here.trial = Trial::shrinking;
        break;
      case Trial::shrinking:
        if (kept) {
          here.trial = Trial::settled;
          return;
        }
        break;
    }
    if (++here.tries == most_trials) {
      here.moved = false;
      here.step = 0.0;
      here.trial = Trial::last;
      return;
    }
    const double secant = here.slope / (here.slope - slope);  // NaN: too far to evaluate
    here.step *= secant > 0.1 ? (secant < 0.5 ? secant : 0.5) : 0.1;
  }

  // Rows that are done leave their result.
  LPN_DEVICE void leave(int k) {
    using namespace solver;
    double size[2], along[2], to_target[2];
    dot(size, residual, residual);
    dot(along, residual, point);
    dot(to_target, residual, target);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Row& here = row[half];
      size[half] = root(size[half]);
      here.rho = size[half] / here.scale;
      const bool improved = here.rho <= progress * here.best;
      if (improved) here.best = here.rho;
      here.waited = improved ? 0 : here.waited + 1;
      int64_t verdict = k < call.max_iter ? searching : iterations_used;
      if (here.waited > patience || !here.moved) verdict = stalled;
      if (-(along[half] - to_target[half]) > here.reach * size[half]) verdict = outside;
      if (here.rho <= call.tol) verdict = converged;
      if (!is_finite(here.rho) || !is_finite(here.phi)) verdict = invalid;
      if (!here.active || verdict == searching) continue;
      here.active = false;
      const int in_team = half * 8 + (simt::lane() >> 2);
      const int64_t index = rows.first_row + in_team;
      if ((simt::lane() & 3) == 0 && Rows::member() == 0) {
        call.residual[index] = here.rho;
        call.iterations[index] = k;
        call.verdict[index] = verdict;
        call.mlp.psi[index] = here.psi;
      }
      each([&](int tile, int h, int i) {
        const int column = tile * block_side + 2 * (simt::lane() & 3) + (i & 1), dim = call.mlp.problem.dim;
        if (h != half || column >= dim || !Rows::mine(tile)) return;
        call.mlp.hv[index * dim + column] = at(point, tile, i);
        call.mlp.f[index * dim + column] = at(image, tile, i);
      });
    }
  }

  LPN_DEVICE void begin() {
    using namespace solver;
    const int dim = call.mlp.problem.dim;
    update([&](int tile, int half, int i) {
      const int in_team = half * 8 + (simt::lane() >> 2);
      const int column = tile * block_side + 2 * (simt::lane() & 3) + (i & 1);
      const int64_t index = (rows.first_row + in_team) * dim + column;
      const bool exists = in_team < rows.rows_here && column < dim;
      at(target, tile, i) = exists ? call.mlp.x[index] : 0.0f;
      at(point, tile, i) = exists ? call.mlp.v[index] : 0.0f;
      at(direction, tile, i) = 0.0f;
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_team = half * 8 + (simt::lane() >> 2);
      row[half].active = in_team < rows.rows_here;
      row[half].t = row[half].active ? call.mlp.p[rows.first_row + in_team] : 1.0;
      row[half].waited = 0;
      row[half].moved = true;
      row[half].best = 1e300;
    }
    evaluate();
    double zz[2], ff[2];
    dot(zz, target, target);
    dot(ff, image, image);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      double scale = root(zz[half]);
      const double least = root(static_cast<double>(dim)), size = root(ff[half]);
      row[half].reach = call.radius * (scale > least ? scale : least);
      if (row[half].t > 0.0 && size > scale) scale = size;
      row[half].scale = scale == 0.0 ? 1.0 : scale;
    }
  }
};

template <class K>
LPN_DEVICE void solve(const SolveCall& call, unsigned char* shared) {
  const Network<K> net = load_network<K>(call.mlp, shared);
  const TeamLayout layout = layout_for<K>(Operation::solve, call.mlp);
  const int team_bytes = layout.bytes() + solve_extra_bytes(K::row_tiles, net.layout.dim_tiles);
  const int64_t teams = teams_of_block<K>(), team = simt::warp() / K::team;
  unsigned char* memory = shared + shared_head_bytes(net.layout, K::resident) + team * team_bytes;
  typename Solver<K>::Rows rows(net, layout, memory, spilled_slots<K>(call.mlp, layout));
  Solver<K> solver{call, rows, reinterpret_cast<float*>(memory + layout.bytes()), {}};
  for (int64_t i = simt::block() * teams + team; i * K::rows < call.mlp.rows; i += simt::blocks() * teams) {
    rows.move_to(i * K::rows, call.mlp.rows);
    solver.begin();
    for (int k = 0; k <= call.max_iter; ++k) {
      solver.leave(k);
      if (!simt::any(solver.row[0].active || solver.row[1].active)) break;
      solver.find_direction();
      solver.search();
    }
  }
}

}  // namespace lpn
