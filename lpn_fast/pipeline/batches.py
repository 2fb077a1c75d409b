"""Which network an image gets, and which images share an evaluation of it.

A network of one channel takes a colour image plane by plane. The planes become samples of the batch, and
because the prior of the image is then the sum of the priors of its planes, this is the exact prox

    prox_{R + R + R}(x_r, x_g, x_b) = (prox_R(x_r), prox_R(x_g), prox_R(x_b)).

Images of one size travel together up to a budget of pixels; images of other sizes wait in their own
bucket. Samples do not see each other, so the grouping changes results by rounding at most.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ..choice import COLOR, EXPLICIT, GRAY, Choice, Network, chosen
from ..io import Image
from ..networks import pretrained

AUTO = "auto"
SHIPPED = {"gray": GRAY, "colour": COLOR, "CT": "fast-ct"}  # denoisers, by the image
ONE_PASS_PRIOR = {"gray": EXPLICIT[GRAY], "colour": EXPLICIT[COLOR], "CT": "ct"}  # where R is asked for
CHANNELS = {"gray": 1, "colour": 3, "CT": 1}

# Activations of a 64-channel network take about 1.6 kB per pixel; one 512 x 512 plane keeps them near 400 MB.
BATCH_PIXELS = 512 * 512
WAITING_BATCHES = 8  # pixels that may wait in unfinished buckets, in batches: bounds memory on mixed folders

IMAGES_PER_SOLVER = 4  # at least, for several solvers

MEMORY_SHARE = 0.25  # fraction of free memory: solvers keep a few images besides, and other programs run, too
KEPT = 4  # tensors of a stage's size that an evaluation holds at once, at most: u, z, e and a copy

Job = TypeVar("Job")


class Networks:
    """The network of every image of a job: the one that is given, or shipped ones for kinds of images.

    "auto" loads, onto the device, one for colour, for gray images and for CT slices, or `instead` what a task prefers
    for a kind, for pilot, descent and trials of weights.
    """

    def __init__(
        self,
        given: Network | str,
        device: str | torch.device = "cpu",
        instead: dict[str, tuple[str, ...]] | None = None,
    ):
        self.names: dict[str, str] = {}
        if given == AUTO:
            names = {kind: (name,) for kind, name in SHIPPED.items()} | (instead or {})
            self.names = {kind: " + ".join(some[:2]) for kind, some in names.items()}
            loaded = {name: pretrained(name, device) for name in dict.fromkeys(itertools.chain(*names.values()))}
            self._models = {kind: [loaded[name] for name in some] for kind, some in names.items()}
        elif not isinstance(given, Network):
            raise TypeError(f'model must be "{AUTO}", an LPN or an ExplicitLPN, got {given!r}')
        elif len(given.spec.axes) != 2:
            kind = "vectors" if given.spec.is_dense else "volumes; call it, or a solver, on tensors"
            raise ValueError(f"model must be a network of images, got one of {kind}")
        else:
            self._models = {"": [given]}

    def suiting(self, kind: str) -> str:
        """The kind of network for a kind of image."""
        return kind if self.names else ""

    def __getitem__(self, kind: str) -> Network:
        return self._models[self.suiting(kind)][0]

    def chosen(self, kind: str) -> Network | Choice:
        """What a task solves with."""
        models = self._models[kind]
        return models[0] if len(models) == 1 else chosen(models, f"models {self.names[kind]}")

    @property
    def all(self) -> list[Network]:
        return list(dict.fromkeys(itertools.chain(*self._models.values())))  # kinds may share them

    @property
    def widest(self) -> Network:
        """The one whose evaluations take most memory per pixel."""
        return max(self.all, key=lambda model: sum(stage.width for stage in model.spec.stages))

    @property
    def fingerprint(self) -> str | dict[str, str]:
        """Digest of each, for the settings of a job."""
        digests = {kind: "+".join(map(_fingerprint, models)) for kind, models in self._models.items()}
        return digests if self.names else digests[""]


def kind_of(image: Image, other: str) -> str:
    """What distinguishes images of different networks: colour, CT, and `other` ones."""
    if len(image.pixels) == 3:
        return "colour"
    return "CT" if image.encoding.kept.get("modality") == "CT" else other


def _fingerprint(model: Network) -> str:
    """Digest of architecture and weights as they act, the same wherever a model was loaded from."""
    with torch.no_grad():
        weights = model.packed().cpu().numpy().tobytes()
    return hashlib.sha256(model.spec.encoded.encode() + weights).hexdigest()[:16]


def batch_pixels_for(model: Network) -> int:
    """How many pixels of the input one evaluation of a network should take.

    On a CPU larger batches than BATCH_PIXELS do not run faster, so that is the most; on a GPU they do.
    """
    affordable = _affordable_pixels(model)
    return affordable if _is_on_gpu(model) else min(BATCH_PIXELS, affordable)


def solvers_for(model: Network, images: int, batch_pixels: int) -> int:
    """How many batches should be solved at once, each by one thread: on a CPU one per thread of torch's.

    One, which has all threads, on a GPU, where memory does not suffice for more, and for a few images, the last of
    which would keep one core busy while the others have nothing left to do.
    """
    threads = torch.get_num_threads()
    if _is_on_gpu(model) or images < IMAGES_PER_SOLVER * threads:
        return 1
    return max(1, min(threads, _affordable_pixels(model) // batch_pixels))


def _is_on_gpu(model: Network) -> bool:
    return next(model.parameters()).device.type == "cuda"


def _affordable_pixels(model: Network) -> int:
    """How many pixels of the input the evaluations of a network can take in the memory that is free."""
    own, spec = next(model.parameters()), model.spec
    image = spec.image_size or (64, 64)  # pixels; any size shows how many units there are per pixel
    stages = zip(spec.stages, spec.stage_sizes(*image), strict=True)
    units = sum(stage.width * math.prod(size) for stage, size in stages) / (spec.channels * math.prod(image))
    return max(1, int(MEMORY_SHARE * _free_bytes(own.device) / (KEPT * own.element_size() * units)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 2 * 2**30


def to_samples(image: Tensor, channels: int) -> Tensor:
    """The image (C, H, W) as a batch: (C, 1, H, W) for a network of one channel, else (1, C, H, W)."""
    if channels == 1:
        return image[:, None]
    if len(image) != channels:
        raise ValueError(f"image must have {channels} channels for this model, got {len(image)}")
    return image[None]


def bucketed(
    jobs: Iterable[Job],
    samples_of: Callable[[Job], Tensor],
    batch_pixels: int = BATCH_PIXELS,
    kind_of: Callable[[Job], Hashable] = lambda job: None,
) -> Iterator[list[Job]]:
    """Jobs in lists whose samples can be concatenated, read from the stream as needed.

    The samples of a job are (n, c, h, w); those of one list have equal (c, h, w) and are of one kind, with no more than
    `batch_pixels` values n c h w in all: a job that exceeds it alone travels alone.
    """
    buckets: dict[Hashable, list[Job]] = {}
    waiting: dict[Hashable, int] = {}  # pixels per bucket

    def taken(size: Hashable) -> list[Job]:
        waiting.pop(size)
        return buckets.pop(size)

    for job in jobs:
        samples = samples_of(job)
        size, pixels = (samples.shape[1:], kind_of(job)), samples.numel()
        if size in buckets and waiting[size] + pixels > batch_pixels:
            yield taken(size)
        buckets.setdefault(size, []).append(job)
        waiting[size] = waiting.get(size, 0) + pixels
        if waiting[size] >= batch_pixels:
            yield taken(size)
        elif sum(waiting.values()) > WAITING_BATCHES * batch_pixels:
            yield taken(max(waiting, key=waiting.get))
    yield from buckets.values()
