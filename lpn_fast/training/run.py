"""A run from its configuration: data, network, schedule, training, and the files in the end."""

from pathlib import Path

import torch

from ..data import ImageCrops, synthetic_crops, validation_batch
from ..networks import LPN, MixtureLPN, shipped_or_loaded
from ..networks.initialise import best_start, initialise_as_
from ..networks.registry import FAMILIES
from .config import DataConfig, TrainingConfig
from .denoiser import train_denoiser
from .distributed import current_group
from .problems import TASKS
from .state import RESUME, is_resume_file, take_weights_

SYNTHETIC_POOL = 64
SYNTHETIC_SIDE = 256
OF_TRAINER = (  # options that a configuration and the trainer call by one name
    "sigma", "out", "batch_size", "seed", "gain_limit", "clip_norm", "ema_decay", "margin", "precision",
    "expansion_weight", "validate_every", "checkpoint_seconds", "tensorboard",
)  # fmt: skip


def train(config: TrainingConfig, progress: bool = True) -> LPN:
    """Train what a configuration describes; a run found in its folder is resumed.

    Parameters
    ----------
    config : TrainingConfig
    progress : bool
        Show a progress bar, and events.

    Returns
    -------
    LPN
        In evaluation mode, its card filled in; also in `config.out`, as model.safetensors with card.md.

    Examples
    --------
    >>> from lpn_fast.training import from_dict, train
    >>> table = {"out": "runs/leaves", "sigma": 0.1, "data": {"synthetic": "dead-leaves"}}
    >>> model = train(from_dict(table))  # doctest: +SKIP
    """
    torch.manual_seed(config.seed)
    model = build_model(config)
    crops = build_crops(config.data, model, device=config.device)
    if progress and current_group().leads:
        size = sum(p.numel() for p in model.parameters())
        print(f"{len(crops)} images, {size:,} parameters, writing to {config.out}")
    fresh = config.model.start is None and not (Path(config.out) / RESUME).exists()
    if fresh and isinstance(model, MixtureLPN) and model.has_start_from_data:
        model.start_from_(crops, config.seed, print if progress and current_group().leads else None)
    entries = model.spec.channels * crops.crop**2
    return train_denoiser(
        model.to(config.device),
        crops,
        config.schedule.phases(entries),
        problems=TASKS[config.task](),
        validation=build_validation(config.data, model),
        **{name: getattr(config, name) for name in OF_TRAINER},
        data_description=describe(config.data, len(crops)),
        config=config.to_dict(),
        progress=progress,
    )


def build_model(config: TrainingConfig) -> LPN:
    """The network, freshly drawn from torch's generator, or the one to go on from."""
    table, channels = config.model, config.data.channels
    family = FAMILIES[table.family]
    interrupted = table.start is not None and is_resume_file(Path(table.start))
    own = table.start is None or interrupted
    model = family.build(table, channels, config.sigma) if own else shipped_or_loaded(table.start)
    if interrupted:
        take_weights_(model, Path(table.start))
        model.project_()
    if table.start is not None and table.border is not None:
        if not isinstance(model, LPN):
            raise ValueError(f"model.border is for networks, explicit priors are always mirrored: {table.start}")
        model = model.with_border(table.border)
    if table.start is not None and (table.spacing or table.context_window):
        if not isinstance(model, MixtureLPN):
            raise ValueError(f"model.spacing and model.context_window are for mixtures, which {table.start} is not")
        model = model.with_spacing(table.spacing, table.context_window)
    if model.spec.is_dense:
        raise ValueError(f"model must be a network of images, got one of vectors: {table.start or table.family}")
    if model.spec.ndim != 2:
        raise ValueError(f"model.start must be a network of images, got one of volumes: {table.start}")
    if model.spec.channels != channels:
        raise ValueError(f"data.channels must be {model.spec.channels} for this model, got {channels}")
    if table.start is None and (table.initialise or not family.own_start):
        noise = None if model.is_noise_conditional else config.sigma
        initialise_as_(model, table.initialise or best_start(model), noise).project_()
    return model.train()


def build_crops(data: DataConfig, model: LPN, pool: int = SYNTHETIC_POOL, device: str = "cpu") -> ImageCrops:
    """The sampler, of `pool` images if they are made up; networks of one image size decide the crop.

    The pixels lie on `device`, and crops are cut there.
    """
    crop = data.crop if model.spec.image_size is None else model.spec.image_size[0]
    if data.synthetic is not None:
        side = max(SYNTHETIC_SIDE, crop)
        return synthetic_crops(
            data.synthetic, crop, data.channels, pool=pool, side=side, augment=data.augment, device=device
        )
    exclude = [Path(line).stem for line in Path(data.exclude).read_text().split()] if data.exclude else []
    return ImageCrops(
        list(data.sources),
        crop,
        data.channels,
        exclude,
        augment=data.augment,
        centre=data.centre,
        samples=data.samples,
        device=device,
        **_reading(data),
    )


def build_validation(data: DataConfig, model: LPN) -> torch.Tensor | None:
    """Clean validation images, (M, C, H, W), or None."""
    if not data.validate:
        return None
    side = data.validate_side if model.spec.image_size is None else model.spec.image_size[0]
    return validation_batch(list(data.validate), data.channels, side, samples=data.validate_samples, **_reading(data))


def _reading(data: DataConfig) -> dict:
    """What training and validation images have in common."""
    return {
        "recursive": data.recursive,
        "window": data.hounsfield,
        "intensities": data.intensities,
        "skip_broken": data.skip_broken,
    }


def describe(data: DataConfig, count: int) -> str:
    """The data in words, for the card."""
    if data.synthetic is not None:
        return f"{count} synthetic images ({data.synthetic})"
    return f"{count} images of {', '.join(Path(source).name for source in data.sources)}"
