"""The published architectures (arXiv 2310.14344) and their state dicts.

    laplacian   dense, dim 1, 50 units, 4 + 1 stages, beta 10
    mnist       28 x 28, 64 channels, conv3 stages at strides 1, 2, 1, 2, then one 7 x 7 stage of 64 units, beta 10
    celeba      128 x 128 x 3, 256 channels, strides 1, 2, 1, 2, 1, 2, then one 16 x 16 stage of 64 units, beta 100
    mayoct      the same with one channel

The published code adds alpha_ref |x|^2 to psi, so alpha = 2 alpha_ref here. Its `lin.i` are the cores
(lin.0 reads x, the last one is the head), its `res.i` the skips of stage i + 1.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..algebra.parameters import layout
from ..algebra.spec import Spec, Stage
from ..contract import check_name
from .initialise import published_start_
from .lpn import LPN
from .registry import Family, add

_PAPER = {
    "laplacian": ("laplacian", {"in_dim": 1, "hidden": 50, "layers": 4, "beta": 10.0, "alpha": 0.0}),
    "mnist": ("lpn_mnist", {"in_dim": 1, "hidden": 64, "beta": 10.0, "alpha": 0.01}),
    "celeba": ("lpn_128", {"in_dim": 3, "hidden": 256, "beta": 100.0, "alpha": 1e-6}),
    "mayoct": ("lpn_128", {"in_dim": 1, "hidden": 256, "beta": 100.0, "alpha": 1e-6}),
}
NAMES = tuple(_PAPER)
_FAMILY_DEFAULTS = {"laplacian": "laplacian", "lpn_mnist": "mnist", "lpn_128": "celeba"}


def paper_network(name: str) -> LPN:
    """A published architecture with the published start (core weights exp(N(-10, 0.1))).

    Parameters
    ----------
    name : "laplacian", "mnist", "celeba" or "mayoct"

    Raises
    ------
    ValueError
        Another name.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> lf.paper_network("mnist").spec.image_size
    (28, 28)
    """
    check_name("name", name, sorted(_PAPER))
    model = LPN(published_spec(*_PAPER[name]))
    # the published 1-D notebook keeps torch's default start; ours for dense networks serves there
    return model if name == "laplacian" else published_start_(model)


def published_config(name: str) -> dict:
    """The model.json of a published network, for `from_reference`; ValueError for another name."""
    check_name("name", name, sorted(_PAPER))
    family, params = _PAPER[name]
    return {"model": family, "params": dict(params)}


def from_reference(checkpoint: str | Path | Mapping[str, Tensor], config: Mapping) -> LPN:
    """A model of the published code, ready to run here.

    Parameters
    ----------
    checkpoint : path or mapping
        A `.pt` file, its content, or a state dict with keys `lin.i.*` and `res.i.*`. Files are read
        without executing code.
    config : mapping
        As in the published model.json: {"model": "lpn_128" | "lpn_mnist" | "laplacian", "params": {...}};
        params may hold in_dim, hidden, layers, beta and alpha (alpha_ref, the factor of |x|^2).

    Returns
    -------
    LPN
        With alpha = 2 alpha_ref, in the checkpoint's dtype.

    Raises
    ------
    ValueError
        Unknown keys or shapes that do not fit the architecture, NaN or infinite values, a negative core
        weight; the message names the key.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> state = {f"lin.{i}.weight": torch.rand(shape) for i, shape in enumerate([(4, 2), (4, 4), (1, 4)])}
    >>> state |= {"res.0.weight": torch.rand(4, 2), "res.0.bias": torch.zeros(4)}
    >>> state |= {"res.1.weight": torch.rand(1, 2), "res.1.bias": torch.zeros(1)}
    >>> config = {"model": "laplacian", "params": {"in_dim": 2, "hidden": 4, "layers": 1}}
    >>> lf.from_reference(state, config)(torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """
    unknown = sorted(set(config) - {"model", "params"})
    if unknown:
        raise ValueError(f"config has unknown keys {unknown}; known are ['model', 'params']")
    family = config.get("model")
    if family not in _FAMILY_DEFAULTS:
        raise ValueError(f"config['model'] must be one of {sorted(_FAMILY_DEFAULTS)}, got {family!r}")
    spec = published_spec(family, dict(config.get("params", {})))
    state = _state_dict(checkpoint)
    model = LPN(spec)
    names = _published_names(spec)
    slots = {slot.name: slot for slot in layout(spec)}
    missing, extra = sorted(set(names) - set(state)), sorted(set(state) - set(names))
    if missing or extra:
        raise ValueError(f"checkpoint does not fit {family}: missing keys {missing}, unexpected keys {extra}")
    model.to(next(iter(state.values())).dtype)
    for key, ours in names.items():
        slot, value = slots[ours], state[key]
        _check_tensor(key, value, slot)
        with torch.no_grad():
            model.get_parameter(ours).copy_(value.reshape(slot.shape))
    return model


def published_spec(family: str, params: dict) -> Spec:
    """The spec of a published model.json entry; params fall back to the published values."""
    defaults = _PAPER[_FAMILY_DEFAULTS[family]][1]
    unknown = sorted(set(params) - set(defaults))
    if unknown:
        raise ValueError(f"config['params'] has unknown keys {unknown}; known are {sorted(defaults)}")
    p = defaults | params
    alpha, hidden = 2 * p["alpha"], p["hidden"]
    if family == "laplacian":
        stages = [Stage(hidden, bias=False)] + [Stage(hidden, kernel=1) for _ in range(p["layers"])]
        stages[-1] = Stage(hidden, kernel=1, heads=("linear",))
        return Spec("dense", p["in_dim"], tuple(stages), p["beta"], alpha, linear=True, constant=True)
    if family == "lpn_mnist":
        strides, size, last, side = (2, 1, 2), 28, 64, 7
    else:
        strides, size, last, side = (2, 1, 2, 1, 2), 128, 64, 16
    stages = [Stage(hidden, skip_kernel=3, skip_padding=1, bias=family == "lpn_128")]
    scale = 1
    for s in strides:
        stages.append(Stage(hidden, 3, s, 1, skip_kernel=3, skip_stride=s, skip_padding=1, resize=scale))
        scale *= s
    stages.append(Stage(last, side, skip_kernel=side, resize=scale, heads=("linear",)))
    return Spec(
        "conv", p["in_dim"], tuple(stages), p["beta"], alpha, constant=family == "lpn_128", image_size=(size, size)
    )


def _published_names(spec: Spec) -> dict[str, str]:
    """Their key -> our parameter name."""
    head = len(spec.stages)
    names = {"lin.0.weight": "stages.0.skip", f"lin.{head}.weight": f"stages.{head - 1}.head"}
    if spec.stages[0].bias:
        names["lin.0.bias"] = "stages.0.bias"
    for index in range(1, head):
        names[f"lin.{index}.weight"] = f"stages.{index}.core"
        names[f"res.{index - 1}.weight"] = f"stages.{index}.skip"
        names[f"res.{index - 1}.bias"] = f"stages.{index}.bias"
    if spec.linear:
        names[f"res.{head - 1}.weight"] = "linear"
        names[f"res.{head - 1}.bias"] = "constant"
    elif spec.constant:
        names[f"lin.{head}.bias"] = "constant"
    return names


def _state_dict(checkpoint) -> dict[str, Tensor]:
    if isinstance(checkpoint, str | Path):
        try:
            checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds; the user needs the file and the reason
            raise ValueError(f"checkpoint {checkpoint} could not be read as a torch file: {error}") from error
    state = checkpoint.get("model_state_dict", checkpoint)
    if not all(isinstance(t, Tensor) for t in state.values()) or not state:
        raise ValueError("checkpoint must be a state dict of tensors, or hold one under 'model_state_dict'")
    return dict(state)


def _check_tensor(key: str, value: Tensor, slot) -> None:
    # a flattened linear layer over pixels and a convolution over the same pixels hold equal numbers
    fits = value.shape == slot.shape or (value.dim() == 2 and value.shape[0] * value.shape[1] == slot.size)
    if not fits or (value.dim() == 2 and len(slot.shape) == 4 and value.shape[0] != slot.shape[0]):
        raise ValueError(f"{key} must have shape {slot.shape}, got {tuple(value.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{key} must be finite, got NaN or infinity")
    if slot.nonnegative and (value < 0).any():
        raise ValueError(
            f"{key} must be non-negative, got a minimum of {value.min().item():g}; clamp it first, as training does"
        )


for _name in NAMES:
    add(Family(_name, LPN, "a published network", fixed=partial(paper_network, _name)))
