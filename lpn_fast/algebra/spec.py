"""The frozen description of an input-convex network, shared by every family and every backend.

Stage l = 1..L (index l - 1 in the code):

    u_l = W_l z_{l-1} + A_l D_l x + b_l + B_l phi(sigma),        z_l = softplus_beta(u_l),        W_l >= 0
    psi(x) = sum_l (w_l . z_l + g_l . z_l^2) + c . x + c0 + 1/2 |K x|^2 + alpha/2 |x|^2,     w_l, g_l >= 0

W_1 is absent. In a dense network W, A, K are matrices; in a convolutional one they are correlations with
zero padding, of images or (`ndim` = 3) of volumes, and every dot product with z or x also sums over the pixels.
D_l keeps one sample out of `resize` (algebra/resize.py); phi(sigma) are fixed features of the noise level
(algebra/noise.py). Softplus is convex and non-decreasing and z >= 0, so psi is convex in x for any weights of those
signs, and f = grad psi is the proximal operator of some function R (arXiv 2310.14344, Propositions 1 and 2).
With `square_first` the first stage is z_1 = u_1^2, u_1 = A_1 D_1 x: it reads x alone, so convex is enough.
The units of a last stage that is `competing` share one output per pixel, z = 1/beta log sum_j exp(beta u_j): convex
and increasing in every u_j, and of any sign, which no stage after it could take. Its head w_L is one number.

Where the last stage has a `window`, its units are contexts, in which the units of the stage before compete. With z = u
in that stage and the window's averages G, which give every pixel all its weight back (algebra/windows.py),

    y_c = G log sum_m V_cm exp(u_m),      z_L = 1/s log sum_c exp(s y_c + b_c + B_c phi(sigma)),      V >= 0, s > 0:

as of a mixture of mixtures whose context holds for a neighbourhood. V and log s are phi(sigma) times what they are at
its knots. Both sums are convex and increasing in every u_m, and so is what they are composed of.

With the `border` "mirror" an image is continued by mirrored pixels in the place of zeros, and the pixels of every z
count in psi with the weights w_p of algebra/patches.py. Networks that `reads_patches` describes have the
choice: their psi is a sum over patches, which w_p >= 0 leaves convex.

With `noise_units` the equations above hold for x measured in units of the noise, which is

    psi_sigma(x) = sigma^2 psi(x / sigma; phi(sigma)),    f_sigma(x) = sigma f(x / sigma; phi(sigma)),

again convex and an exact prox at every sigma: thresholds and jumps then follow the noise by themselves. The
module scales (networks/lpn.py); operators and backends never see sigma, and the Hessian is the same function of
x / sigma.
"""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass

HEADS = ("linear", "squared")
BORDERS = ("zero", "mirror")


@dataclass(frozen=True)
class Stage:
    """One stage  u = W z + A D x + b,  z = softplus(u).  All lengths in samples of their input, along each axis."""

    width: int  # number of units (dense) or channels (conv)
    kernel: int = 0  # side of the core kernel W; 0 = no core (the first stage)
    stride: int = 1
    padding: int = 0
    skip_kernel: int = 1  # side of the skip kernel A; 0 = no skip
    skip_stride: int = 1
    skip_padding: int = 0
    resize: int = 1  # D: x is resized by 1/resize before the skip
    bias: bool = True
    heads: tuple[str, ...] = ()  # which of w . z ("linear") and g . z^2 ("squared") enter psi
    competing: bool = False  # z is the soft maximum over the units, in place of softplus(u); last stage only
    window: int = 0  # side of the neighbourhood of a context; 0 = units are no contexts; last stage only


class _Encoded:
    encoded: str  # no field of a Spec: it follows from the fields


@dataclass(frozen=True, eq=False)
class Spec(_Encoded):
    """A whole network. Hashable; its attribute `encoded` is the string that crosses the operator boundary."""

    kind: str  # "dense": x is (N, channels); "conv": x is (N, channels, H, W) or (N, channels, D, H, W)
    channels: int
    stages: tuple[Stage, ...]
    beta: float
    alpha: float = 0.0
    linear: bool = False  # c . x; per channel in a convolutional network
    constant: bool = False  # c0
    quadratic: int = 0  # rows (dense) or channels (conv) of K; 0 = no quadratic term
    quadratic_kernel: int = 1
    noise_levels: tuple[float, ...] = ()  # knots of phi; () = one fixed noise level
    noise_units: bool = False  # x enters as x / sigma
    square_first: bool = False  # z_1 = u_1^2 without bias, in place of softplus(u_1)
    image_size: tuple[int, ...] | None = None  # the only (H, W), or (D, H, W), the network accepts; None = any
    ndim: int = 2  # axes of space (conv): 2 for images, 3 for volumes
    border: str = "zero"  # how an image goes on beyond its border: by zeros or mirrored

    def __post_init__(self):
        _check(self)
        # Canonical JSON: readable in an exported graph, a cheap dictionary key, and what the operators take.
        encoded = json.dumps(to_dict(self), sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "encoded", encoded)

    def __eq__(self, other) -> bool:
        return isinstance(other, Spec) and self.encoded == other.encoded

    def __hash__(self) -> int:
        return hash(self.encoded)  # a string remembers its hash; caches read it on every call

    @property
    def is_dense(self) -> bool:
        return self.kind == "dense"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of space: () for a dense network, else ("H", "W") or ("D", "H", "W")."""
        return () if self.is_dense else ("D", "H", "W")[-self.ndim :]

    @property
    def is_mirrored(self) -> bool:
        """Whether images go on mirrored beyond their borders."""
        return self.border == "mirror"

    @property
    def gates_pixels(self) -> bool:
        """Whether this is a squared first stage over all patches of an image, under gates of single pixels."""
        return self.reads_patches and self.spacing == 1 and not self.has_contexts

    @property
    def spacing(self) -> int:
        """Pixels from one patch to the next along each axis, of networks that read patches."""
        return self.stages[0].skip_stride

    @property
    def reads_patches(self) -> bool:
        """Whether psi is a sum over patches of an image, of what gates of single pixels or contexts make of it.

        Over all, or where their side is even over every second one along each axis (`spacing`).
        """
        if len(self.axes) != 2 or not self.square_first or self.linear or self.constant or self.quadratic:
            return False
        first, *gates = self.stages
        whole = first.resize == 1 and first.skip_padding == first.skip_kernel - 1
        whole = whole and first.skip_stride in (1, 2) and first.skip_kernel % first.skip_stride == 0
        return whole and all(_is_gate(stage) for stage in gates) and "linear" in self.stages[-1].heads

    @property
    def has_contexts(self) -> bool:
        """Whether the units of the last stage are contexts, in which those before it compete."""
        return self.stages[-1].window > 0

    def stage_sizes(self, *image: int) -> list[tuple[int, ...]]:
        """(H_l, W_l) or (D_l, H_l, W_l) of every z_l for an input of so many pixels per axis (conv only)."""
        sizes: list[tuple[int, ...]] = []
        for index, stage in enumerate(self.stages):
            if stage.skip_kernel:
                size = tuple(
                    conv_length(ceil_div(n, stage.resize), stage.skip_kernel, stage.skip_stride, stage.skip_padding)
                    for n in image
                )
            if index and stage.kernel:
                core = tuple(conv_length(n, stage.kernel, stage.stride, stage.padding) for n in sizes[-1])
                if stage.skip_kernel and core != size:
                    raise ValueError(
                        f"stage {index}: its core gives {core} pixels and its skip {size} for an image of "
                        f"{image}; stride, padding and resize must agree"
                    )
                size = core
            if min(size) < 1:
                raise ValueError(f"an image of {image} pixels is too small: stage {index} would be {size}")
            sizes.append(size)
        return sizes


def to_dict(spec: Spec) -> dict:
    """Plain JSON-ready dictionary of a spec, without what is as it was before there was a choice."""
    data = dataclasses.asdict(spec)
    for name, before in (("ndim", 2), ("border", "zero")):
        if data[name] == before:
            del data[name]
    for stage in data["stages"]:
        if not stage["window"]:
            del stage["window"]
    return data


def from_dict(data: dict) -> Spec:
    """Spec from `to_dict`'s dictionary; unknown keys are an error that names them."""
    if not isinstance(data, dict):
        raise TypeError(f"a network spec must be a dictionary, got {type(data).__name__}")
    data = dict(data)
    _refuse_unknown(data, Spec, "network spec")
    stages = []
    for item in data.pop("stages", ()):
        _refuse_unknown(item, Stage, "stage")
        stages.append(Stage(**{**item, "heads": tuple(item.get("heads", ()))}))
    if data.get("image_size") is not None:
        data["image_size"] = tuple(data["image_size"])
    data["noise_levels"] = tuple(data.get("noise_levels", ()))
    return Spec(stages=tuple(stages), **data)


@functools.cache
def decode(encoded: str) -> Spec:
    """Inverse of `Spec.encoded`; cached, because every operator call does it."""
    return from_dict(json.loads(encoded))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def conv_length(length: int, kernel: int, stride: int, padding: int) -> int:
    """Output length of a strided, zero-padded correlation."""
    return (length + 2 * padding - kernel) // stride + 1


def _is_gate(stage: Stage) -> bool:
    reading = stage.kernel, stage.stride, stage.padding, stage.skip_kernel
    return reading == (1, 1, 0, 0) and stage.bias and "squared" not in stage.heads


def _refuse_unknown(data: dict, cls: type, what: str) -> None:
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{what} has unknown keys {unknown}; known are {sorted(known)}")


def _check(spec: Spec) -> None:
    def need(ok, message):
        if not ok:
            raise ValueError(message)

    need(spec.kind in ("dense", "conv"), f"kind must be 'dense' or 'conv', got {spec.kind!r}")
    need(spec.ndim in (2, 3), f"ndim must be 2 for images or 3 for volumes, got {spec.ndim!r}")
    need(
        spec.ndim == 2 or not spec.is_dense, f"ndim belongs to convolutional networks, got {spec.ndim} for a dense one"
    )
    need(
        spec.image_size is None or len(spec.image_size) == spec.ndim,
        f"image_size must have {spec.ndim} sides or be None, got {spec.image_size}",
    )
    need(spec.channels >= 1, f"channels (dim) must be at least 1, got {spec.channels}")
    need(len(spec.stages) >= 1, "a network needs at least one stage, got none")
    need(math.isfinite(spec.beta) and spec.beta > 0, f"beta must be positive, got {spec.beta}")
    need(math.isfinite(spec.alpha) and spec.alpha >= 0, f"alpha must be zero or positive, got {spec.alpha}")
    need(spec.quadratic >= 0, f"quadratic must be zero or positive, got {spec.quadratic}")
    levels = spec.noise_levels
    need(
        all(s > 0 and math.isfinite(s) for s in levels) and list(levels) == sorted(set(levels)),
        f"noise_levels must be positive and increasing, got {levels}",
    )
    need(bool(levels) or not spec.noise_units, "noise_units needs noise_levels, got none")
    for index, stage in enumerate(spec.stages):
        need(stage.width >= 1, f"stage {index}: width must be at least 1, got {stage.width}")
        need(
            (stage.kernel == 0) == (index == 0),
            f"stage {index}: the first stage has no core kernel and every other one has, got kernel={stage.kernel}",
        )
        need(index > 0 or stage.skip_kernel > 0, "stage 0 reads x only, so it needs a skip_kernel, got 0")
        need(
            all(head in HEADS for head in stage.heads) and len(set(stage.heads)) == len(stage.heads),
            f"stage {index}: heads must be among {HEADS}, got {stage.heads}",
        )
        need(
            stage.resize == 1 or (stage.resize >= 2 and stage.resize % 2 == 0),
            f"stage {index}: resize must be 1 or even, got {stage.resize}",
        )
        if spec.is_dense:
            geometry = (stage.stride, stage.padding, stage.skip_stride, stage.skip_padding, stage.resize)
            need(
                stage.kernel <= 1 and stage.skip_kernel <= 1 and geometry == (1, 0, 1, 0, 1),
                f"stage {index}: a dense network has kernel, stride and resize 1 and padding 0, got {stage}",
            )
        need(stage.window == 0 or index == len(spec.stages) - 1, f"stage {index}: only a last stage has a window")
        last = index == len(spec.stages) - 1 and not (spec.square_first and index == 0)
        need(
            not stage.competing or (last and stage.heads == ("linear",)),
            f"stage {index}: only a last stage of softplus units, with a linear head and no other, can be competing, "
            f"got heads={stage.heads}",
        )
    first = spec.stages[0]
    need(
        not spec.square_first or (not first.bias and "squared" not in first.heads),
        "square_first requires a first stage without bias and without squared head, "
        f"got bias={first.bias}, heads={first.heads}",
    )
    need(any(stage.heads for stage in spec.stages), "no stage has a head, so psi would not depend on the stages")
    need(spec.border in BORDERS, f"border must be one of {BORDERS}, got {spec.border!r}")
    if spec.has_contexts:
        _check_contexts(spec, need)
    need(
        not spec.is_mirrored or spec.reads_patches,
        "border 'mirror' requires a frame of images under gates of single pixels (side 1, stride 1), "
        f"got {_in_words(spec)}",
    )


def _check_contexts(spec: Spec, need) -> None:
    *_, experts, last = (None, *spec.stages)
    need(last.window % 2 == 1, f"window must be odd, or 0 for units that are no contexts, got {last.window}")
    need(
        last.competing and spec.reads_patches and len(spec.stages) == 3 and not experts.heads,
        "a window requires competing units, after experts without a head over a squared first stage of images, got "
        f"{spec.stages}",
    )
    need(spec.beta == 1, f"beta must be 1 where experts compete in contexts, got {spec.beta}")


def _in_words(spec: Spec) -> str:
    if spec.is_dense or spec.ndim == 3:
        return "a dense network" if spec.is_dense else "one of volumes"
    return (
        f"gates of {[(stage.kernel, stage.stride) for stage in spec.stages[1:]]}" if spec.square_first else "no frame"
    )
