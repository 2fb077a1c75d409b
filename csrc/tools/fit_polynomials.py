"""Coefficients of csrc/cpu/isa/exponentials.h: near-minimax fits, rounded to float32.

    expm1(r)  = r + r^2 Q(r)     for |r| <= ln(2)/2, relative error
    log1p(e)  = e + e^2 R(e)     for 0 <= e <= 1,    relative error
    2^r       = 1 + r S(r)       for |r| <= 1/2,     relative error

and of csrc/cpu/isa/activation.h:

    2 artanh(v) = 2 v + v^3 T(v^2)   for 0 <= v <= 1/3,  relative error

and of kernels/cuda/softplus.h, for 16-bit results:

    log2(1 + e) = e P(e)             for 0 <= e <= 1,    relative error

The leading coefficient is fixed, so all but the power keep their relative accuracy as the argument tends to
zero. The fit is the Lawson iteration: least squares on a dense grid whose weights are multiplied by the error
until the error is level. Each coefficient is rounded to float32 in turn, from the one that matters most
down, and the rest is refitted, so that rounding one is made good by the others.

Run it with no argument; it prints the tables and the error that remains in exact arithmetic.
"""

import math

import numpy as np

LAWSON_SWEEPS = 300


def fit_level(columns, target, fixed):
    """Coefficients with a level weighted error.

    Parameters
    ----------
    columns : ndarray, shape (points, terms)
        Basis functions divided by the function, so that errors are relative.
    target : ndarray, shape (points,)
        What the columns have to sum to.
    fixed : dict of int to float
        Coefficients that are already rounded.

    Returns
    -------
    ndarray, shape (terms,)
    """
    free = [i for i in range(columns.shape[1]) if i not in fixed]
    rest = target - sum((columns[:, i] * value for i, value in fixed.items()), np.zeros_like(target))
    weights = np.ones_like(target)
    best, best_error = None, math.inf
    for _ in range(LAWSON_SWEEPS):
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(columns[:, free] * root[:, None], rest * root, rcond=None)[0]
        error = np.abs(columns[:, free] @ solution - rest)
        if error.max() < best_error:
            best, best_error = solution, error.max()
        weights *= error + 1e-3 * error.max()
        weights /= weights.sum()
    coefficients = np.zeros(columns.shape[1])
    coefficients[free] = best
    for i, value in fixed.items():
        coefficients[i] = value
    return coefficients


def fit_float32(function, points, terms, order=1, step=1, lead=1.0):
    """Float32 k of  lead x^order + x^(order + step) (k_0 + k_1 x^step + ...)  and the largest relative error left."""
    values = function(points)
    columns = np.stack([points ** (order + step * (1 + i)) / values for i in range(terms)], axis=1)
    target = 1.0 - lead * points**order / values
    fixed = {}
    for i in range(terms):
        fixed[i] = float(np.float32(fit_level(columns, target, fixed)[i]))
    rounded = np.array([fixed[i] for i in range(terms)])
    return rounded, np.abs(columns @ rounded - target).max()


def chebyshev_points(low, high, count=4001):
    """Points crowded at the ends, without zero, where the quotients are 0/0."""
    nodes = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(count) + 0.5) / count)
    return nodes[np.abs(nodes) > 1e-6]


def main():
    half = math.log(2) / 2 * 1.001  # the rounding of n can overshoot the half interval a little
    for name, function, points, terms, leading in (
        ("expm1_coefficients", np.expm1, chebyshev_points(-half, half), 5, {}),
        ("log1p_coefficients", np.log1p, chebyshev_points(0.0, 1.0), 9, {}),
        ("power_coefficients", np.exp2, chebyshev_points(-0.5, 0.5), 6, {"order": 0}),
        ("artanh_coefficients", lambda v: 2 * np.arctanh(v), chebyshev_points(0.0, 1 / 3), 4, {"step": 2, "lead": 2.0}),
        (
            "log2_coefficients",
            lambda e: np.log1p(e) / math.log(2),
            chebyshev_points(0.0, 1.0),
            6,
            {"order": 0, "lead": 0.0},
        ),
    ):
        coefficients, error = fit_float32(function, points, terms, **leading)
        print(f"// {name}: relative error {error:.2e} = {error * 2**24:.3f} x 2^-24")
        print(",\n".join(f"    {value:.9e}f" for value in coefficients))


if __name__ == "__main__":
    main()
