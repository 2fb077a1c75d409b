"""Which images share a network evaluation.

A network of one channel takes a colour image plane by plane. The planes become samples of the batch, and
because the prior of the image is then the sum of the priors of its planes, this is the exact prox

    prox_{R + R + R}(x_r, x_g, x_b) = (prox_R(x_r), prox_R(x_g), prox_R(x_b)).

Images of one size travel together up to a budget of pixels; images of other sizes wait in their own
bucket. Samples do not see each other, so the grouping changes results by rounding at most.
"""

import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ..networks import LPN

# Activations of a 64-channel network take about 1.6 kB per pixel; one 512 x 512 plane keeps them near 400 MB.
BATCH_PIXELS = 512 * 512
WAITING_BATCHES = 8  # pixels that may wait in unfinished buckets, in batches: bounds memory on mixed folders

IMAGES_PER_SOLVER = 4  # at least, for several solvers

MEMORY_SHARE = 0.25  # fraction of free memory: solvers keep a few images besides, and other programs run, too
KEPT = 4  # tensors of a stage's size that an evaluation holds at once, at most: u, z, e and a copy

Job = TypeVar("Job")


def batch_pixels_for(model: LPN) -> int:
    """How many pixels of the input one evaluation of a network should take.

    On a CPU larger batches than BATCH_PIXELS do not run faster, so that is the most; on a GPU they do.
    """
    affordable = _affordable_pixels(model)
    return affordable if _is_on_gpu(model) else min(BATCH_PIXELS, affordable)


def solvers_for(model: LPN, images: int, batch_pixels: int) -> int:
    """How many batches should be solved at once, each by one thread: on a CPU one per thread of torch's.

    One, which has all threads, on a GPU, where memory does not suffice for more, and for a few images, the last of
    which would keep one core busy while the others have nothing left to do.
    """
    threads = torch.get_num_threads()
    if _is_on_gpu(model) or images < IMAGES_PER_SOLVER * threads:
        return 1
    return max(1, min(threads, _affordable_pixels(model) // batch_pixels))


def _is_on_gpu(model: LPN) -> bool:
    return next(model.parameters()).device.type == "cuda"


def _affordable_pixels(model: LPN) -> int:
    """How many pixels of the input the evaluations of a network can take in the memory that is free."""
    own, spec = next(model.parameters()), model.spec
    side = 64  # pixels; any size shows how many units there are per pixel
    sizes = [(1, 1)] * len(spec.stages) if spec.is_dense else spec.stage_sizes(*(spec.image_size or (side, side)))
    pixels = spec.channels * (1 if spec.is_dense else math.prod(spec.image_size or (side, side)))
    units = sum(stage.width * math.prod(size) for stage, size in zip(spec.stages, sizes, strict=True))
    return max(1, int(MEMORY_SHARE * _free_bytes(own.device) / (KEPT * own.element_size() * units / pixels)))


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
    for job in jobs:
        samples = samples_of(job)
        size, pixels = (samples.shape[1:], kind_of(job)), samples.numel()
        if waiting.get(size, 0) + pixels > batch_pixels and size in buckets:
            waiting.pop(size)
            yield buckets.pop(size)
        buckets.setdefault(size, []).append(job)
        waiting[size] = waiting.get(size, 0) + pixels
        if waiting[size] >= batch_pixels:
            waiting.pop(size)
            yield buckets.pop(size)
        elif sum(waiting.values()) > WAITING_BATCHES * batch_pixels:
            fullest = max(waiting, key=waiting.get)
            waiting.pop(fullest)
            yield buckets.pop(fullest)
    yield from buckets.values()
