"""softplus, its slope and its curvature, and the steps made of them, on tiles in registers.

    z = softplus_beta(u) = max(u, 0) + log2(1 + 2^-|y|) / kappa,     y = kappa u,   kappa = beta log2(e)
    s = sigma'(u)  = 1 - 2^(-kappa z)
    q = sigma''/sigma'^2 = beta 2^(-kappa z) / s,   and 0 where z = 0

    FORWARD  z = softplus(a + b)            SLOPE    e     = s (a + w + 2 g z)
    TANGENT  dz = s a                       ADJOINT  delta = s (a + 2 g dz) + e dz q

A first stage z = u^2 has s = 2 u. It keeps u, e / u and du in the places of z, e and dz (ops/epilogues.py), and

    PLAIN    u = a,   du = a                                               SQUARE_FACTOR   e / u = 2 (a + w)
    SQUARE_SLOPE  e = 2 u (a + w), where nothing is kept                   SQUARE_ADJOINT  delta = 2 u a + (e / u) du

`a` is the product that an accumulator holds. Everything here is float32; z, e, dz are read from storage as they are,
so what a rounded z implies for s is the same in every sweep. Two traps, both for small z: log2(1 + t) returns 0 for
t < 2^-24, and 1 - 2^-t has no digits left for t < 2^-12; each has a series there. And q overflows below the smallest
normal number, where e dz q ~ z is nothing.
"""

import triton
import triton.language as tl

FORWARD: tl.constexpr = tl.constexpr("forward")
SLOPE: tl.constexpr = tl.constexpr("slope")
TANGENT: tl.constexpr = tl.constexpr("tangent")
ADJOINT: tl.constexpr = tl.constexpr("adjoint")
PLAIN: tl.constexpr = tl.constexpr("plain")
SQUARE_FACTOR: tl.constexpr = tl.constexpr("square_factor")
SQUARE_SLOPE: tl.constexpr = tl.constexpr("square_slope")
SQUARE_ADJOINT: tl.constexpr = tl.constexpr("square_adjoint")

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
TINY: tl.constexpr = tl.constexpr(1.1754944e-38)  # the smallest normal float32
SERIES: tl.constexpr = tl.constexpr(0.0625)  # below this a series; its first dropped term is under 2^-24


@triton.jit
def softplus(u, beta):
    """softplus_beta(u), float32."""
    t = tl.exp2(-tl.abs(u) * (beta * LOG2E))  # in (0, 1]
    series = t * (1 - t * (1 / 2 - t * (1 / 3 - t * (1 / 4 - t * (1 / 5 - t * (1 / 6))))))
    log1p = tl.where(t < SERIES, series, tl.log2(1 + t) * LN2)
    return tl.maximum(u, 0.0) + log1p / beta


@triton.jit
def slope(z, beta):
    """sigma' = 1 - exp(-beta z), float32."""
    t = z * beta
    series = t * (1 - t * (1 / 2 - t * (1 / 6 - t * (1 / 24 - t * (1 / 120 - t * (1 / 720))))))
    return tl.where(t < SERIES, series, 1 - tl.exp2(-t * LOG2E))


@triton.jit
def curvature(z, beta):
    """sigma'' / sigma'^2 = beta / expm1(beta z), float32; 0 where z is."""
    s = slope(z, beta)
    safe = z >= TINY
    return tl.where(safe, beta * (1 - s) / tl.where(safe, s, 1.0), 0.0)


@triton.jit
def within_half(z):
    """z, finite ones no larger than half precision's largest. The slope there is one as it is beyond, so f stays what
    it is, and psi alone is too small. Infinity and NaN pass."""
    return tl.where((z > 65504.0) & (z < float("inf")), 65504.0, z)


@triton.jit
def finish(a, z, e, dz, head, head_squared, beta, EPILOGUE: tl.constexpr):
    """One of the steps on tiles [M, N], float32; `head`, `head_squared` are [1, N] or None, unused tiles anything."""
    if EPILOGUE == FORWARD:
        return softplus(a, beta)
    elif EPILOGUE == TANGENT:
        return a * slope(z, beta)
    elif EPILOGUE == SLOPE:
        if head is not None:
            a += head
        if head_squared is not None:
            a += 2 * head_squared * z
        return a * slope(z, beta)
    elif EPILOGUE == ADJOINT:
        if head_squared is not None:
            a += 2 * head_squared * dz
        return a * slope(z, beta) + e * (dz * curvature(z, beta))
    elif EPILOGUE == SQUARE_ADJOINT:
        return 2 * z * a + e * dz
    elif EPILOGUE == SQUARE_FACTOR or EPILOGUE == SQUARE_SLOPE:
        if head is not None:
            a += head
        if EPILOGUE == SQUARE_SLOPE:
            a *= z
        return 2 * a
    else:
        return a
