"""Where training starts from.

    core and head weights   log-normal with mean 1 / fan-in   (each unit averages what it reads; std of the log 1)
    skips and K             normal with variance 1 / fan-in
    biases, c, c0           zero

Averages keep the scale of z from stage to stage although no weight is negative. The published start,
core weights exp(N(-10, 0.1)), is `published_start_`.
"""

import math

import torch
from torch import nn

from ..algebra.parameters import layout

LOG_STD = 1.0


@torch.no_grad()
def initialise_(model: nn.Module) -> nn.Module:
    """Draw all parameters of an LPN in place from torch's global generator."""
    for slot in layout(model.spec):
        parameter = model.get_parameter(slot.name)
        name = slot.name.rsplit(".", 1)[-1]
        fan_in = math.prod(slot.shape[1:]) if len(slot.shape) > 1 else slot.shape[0]
        if slot.nonnegative:
            # mean of exp(N(m, s^2)) is exp(m + s^2 / 2)
            parameter.normal_(-math.log(fan_in) - LOG_STD**2 / 2, LOG_STD).exp_()
        elif name in ("skip", "quadratic"):
            parameter.normal_(0, fan_in**-0.5)
        else:
            parameter.zero_()
    return model


@torch.no_grad()
def published_start_(model: nn.Module) -> nn.Module:
    """Redraw the non-negative weights as the published code does: exp(N(-10, 0.1))."""
    for slot in layout(model.spec):
        if slot.nonnegative:
            model.get_parameter(slot.name).normal_(-10, 0.1).exp_()
    return model
