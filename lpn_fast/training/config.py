"""A training run as data: what `lpn-fast train --config run.toml` reads and every checkpoint records.

    out = "runs/gray"
    sigma = [0.01, 0.1]
    ema_decay = 0.999

    [data]
    sources = ["photos"]
    validate = ["held_out"]

    [model]
    hidden = 48

    [schedule]
    loss = "matching"
    steps = 40000

Every key has a default, listed in the classes below; JSON files hold the same. Unknown keys and values of the
wrong type are refused, with the nearest known name.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from ..data.augment import SYMMETRIES, Augment
from ..data.ct import WINDOWS, Window
from ..data.synthetic import KINDS
from ..networks.initialise import STARTS
from .schedule import GAMMA_MIN, Phase, published_phases

FAMILIES = ("multiscale", "frame", "mixture", "ridge", "laplacian", "mnist", "celeba", "mayoct")


@dataclass(frozen=True)
class DataConfig:
    """[data]: what is trained on. Names as in `lpn_fast.data.ImageCrops` and `Augment`."""

    sources: tuple[str, ...] = ()  # files, folders, archives
    synthetic: str | None = None  # or images made up: "dead-leaves", "ellipses", "phantoms"
    validate: tuple[str, ...] = ()  # files, folders, archives for the validation PSNR and SSIM
    validate_side: int = 160  # pixels of their centres
    channels: int = 1  # 1 = gray, 3 = colour
    crop: int | None = 64  # side in pixels; a family of one image size brings its own
    centre: int | None = None
    exclude: str | None = None  # text file of image names never to train on, one a line
    samples: tuple[int, int] | None = None
    validate_samples: tuple[int, int] | None = None
    split: str | None = None
    validate_split: str | None = None
    recursive: bool = False
    window: str | tuple[float, float] = "full"  # of DICOM files: a name of WINDOWS or two Hounsfield units
    full_scale: float | None = None
    skip_broken: bool = False
    cache: str | None = None
    symmetries: str = "all"
    degrees: float = 0.0
    zoom: float = 1.0
    probability: float = 1.0
    contrast: float = 1.5

    def __post_init__(self):
        _one_of("data.synthetic", self.synthetic, (*KINDS, None))
        _one_of("data.symmetries", self.symmetries, SYMMETRIES)
        if bool(self.sources) == (self.synthetic is not None):
            raise ValueError("data must have either sources (--data) or synthetic, got both or none")
        if isinstance(self.window, str):
            _one_of("data.window", self.window, tuple(WINDOWS))

    @property
    def augment(self) -> Augment:
        return Augment(self.symmetries, self.degrees, self.zoom, self.probability, self.contrast)

    @property
    def hounsfield(self) -> Window:
        return WINDOWS[self.window] if isinstance(self.window, str) else Window(*self.window)


@dataclass(frozen=True)
class ModelConfig:
    """[model]: the architecture, or a trained model to go on from, which brings its own."""

    family: str = "multiscale"  # "ridge": R is convex, see RidgeLPN; the last are the published networks
    hidden: int = 48  # channels per stage; ridge: pairs of filters; mixture: experts
    strides: tuple[int, ...] = (1, 2, 1, 2, 1)
    kernel: int = 3
    skip_kernel: int = 5
    heads: str = "all"
    squared_head: bool = True
    gates: tuple[tuple[int, int, int], ...] | None = None  # frame: (side, stride, width) of its stages
    beta: float | None = None  # None: 100; frame: 1, in units of the noise; mixture: has none
    alpha: float | None = None  # None: 1e-3; frame, mixture: 1e-4
    initialise: str | None = None  # one of STARTS; None: best_start; frame and mixture have their own
    start: str | None = None  # a model file to fine-tune

    def __post_init__(self):
        _one_of("model.family", self.family, FAMILIES)
        _one_of("model.initialise", self.initialise, (*STARTS, None))


@dataclass(frozen=True)
class ScheduleConfig:
    """[schedule]: the loss, and how long. None takes what suits the loss."""

    loss: str = "l2"  # "l1", "l2", "log", or "matching" = pre-training, then proximal matching
    steps: int = 20_000
    pretrain: str = "l1"  # for matching: "l1", "l2", or "none" to fine-tune
    learning_rate: float | None = None  # l1, l2: 2e-3; pre-training: 1e-3
    matching_rate: float = 1e-4
    decay: float | None = None  # fraction the rate falls to on a cosine; l1, l2: 0.01; matching: 1
    warmup: int = 0
    gamma_min: float = GAMMA_MIN  # last gamma in units of sqrt(n), n entries per sample; or of sqrt(n) sigma
    halvings: int = 3
    gamma_unit: str = "absolute"  # "sigma": every sample's gamma is a multiple of its own noise level

    def __post_init__(self):
        _one_of("schedule.loss", self.loss, ("l1", "l2", "log", "matching"))
        _one_of("schedule.pretrain", self.pretrain, ("l1", "l2", "none"))

    def phases(self, entries: int) -> list[Phase]:
        """The phases for samples of `entries` numbers."""
        if self.loss != "matching":
            rate = self.learning_rate or 2e-3
            decay = 0.01 if self.decay is None else self.decay
            return [Phase(self.loss, self.steps, rate, None if decay == 1 else decay * rate, warmup=self.warmup)]
        return published_phases(
            entries,
            self.steps,
            None if self.pretrain == "none" else self.pretrain,
            self.gamma_min,
            self.halvings,
            pretrain_rate=self.learning_rate or 1e-3,
            matching_rate=self.matching_rate,
            decay=1.0 if self.decay is None else self.decay,
            warmup=self.warmup,
            gamma_unit=self.gamma_unit,
        )


@dataclass(frozen=True)
class TrainingConfig:
    """A run. Names as in `Trainer`."""

    out: str
    sigma: float | tuple[float, float]  # noise level, or the range for a noise-conditional network
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 16
    seed: int = 0
    gain_limit: float | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    margin: int = 0  # pixels at the sides of a crop that the loss leaves out
    precision: str = "fp32"
    expansion_weight: float = 0.0
    task: str = "denoise"  # or "deblur": through the minimiser of deblurring problems (equilibrium.py)
    validate_every: int = 500
    checkpoint_seconds: float = 60.0
    device: str = "cpu"
    threads: int | None = None
    tensorboard: bool = False
    verify: bool = True

    def __post_init__(self):
        _one_of("task", self.task, ("denoise", "deblur"))

    def to_dict(self) -> dict:
        """JSON-ready; `from_dict` reads it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def from_dict(data: dict) -> TrainingConfig:
    """The configuration in a nested dictionary; ValueError names unknown keys and wrong values."""
    return _build(TrainingConfig, data, "")


def read_config(path: str | Path) -> dict:
    """The content of a .toml or .json file, unchecked, for `from_dict`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        if path.suffix.lower() == ".json":
            data = json.loads(path.read_text())
        else:
            data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as {path.suffix or 'TOML'}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a table of keys, got {type(data).__name__}")
    return data


def merge(data: dict, more: dict) -> dict:
    """`data` with the entries of `more` on top, table by table."""
    merged = dict(data)
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(merged.get(key, {}), dict):
            value = merge(merged.get(key, {}), value)
        merged[key] = value
    return merged


def _build(cls, data: dict, table: str):
    hints, values = typing.get_type_hints(cls), {}
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1) or difflib.get_close_matches(key, _everything(), 1)
            hint = f"; did you mean {_place(near[0], cls, table)!r}?" if near else f"; known are {sorted(hints)}"
            raise ValueError(f"unknown key {table + key!r}{hint}")
        values[key] = _converted(value, hints[key], table + key)
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            if dataclasses.is_dataclass(hints[f.name]):
                values[f.name] = _build(hints[f.name], {}, f"{table}{f.name}.")
            else:
                raise ValueError(f"{table + f.name!r} must be given")
    return cls(**values)


def _converted(value, wanted, name: str):
    """`value` as the annotation has it: lists become tuples, whole numbers floats; ValueError otherwise."""
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, dict):
            raise ValueError(f"{name!r} must be a table, got {value!r}")
        return _build(wanted, value, name + ".")
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if option in (int, bool, str) and type(value) is option:
            return value
        if option is float and type(value) in (int, float):
            return float(value)
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            kinds = typing.get_args(option)
            if kinds[-1] is ... or len(kinds) == len(value):
                return tuple(_converted(v, kinds[0], name) for v in value)
    raise ValueError(f"{name!r} must be {_described(wanted)}, got {value!r}")


def _described(wanted) -> str:
    return str(getattr(wanted, "__name__", wanted) if isinstance(wanted, type) else wanted).replace("NoneType", "None")


def _everything() -> dict[str, str]:
    """Every key -> its table."""
    tables = {"": TrainingConfig, "data.": DataConfig, "model.": ModelConfig, "schedule.": ScheduleConfig}
    return {f.name: table for table, cls in tables.items() for f in dataclasses.fields(cls)}


def _place(key: str, cls, table: str) -> str:
    return table + key if key in {f.name for f in dataclasses.fields(cls)} else _everything()[key] + key


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), [a for a in allowed if a], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {[a for a in allowed if a is not None]}, got {value!r}{hint}")
