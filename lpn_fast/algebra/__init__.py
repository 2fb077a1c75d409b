"""What a learned proximal network is, on paper: its description, its parameters, its executable definition.

`spec` describes a network, `parameters` lays its weights out in one vector, `resize` and `noise` hold the
two fixed maps in front of it, and `reference` evaluates the definition with plain automatic
differentiation. Nothing here knows how the fast paths compute.
"""
