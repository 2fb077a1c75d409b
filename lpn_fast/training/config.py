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

The classes below declare every key once: its type, default, help and flag. `lpn-fast train` makes its flags of them
(cli/train.py). JSON files hold the same as TOML. Unknown keys and values of the wrong type are refused, with the
nearest known name.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from argparse import ArgumentTypeError
from dataclasses import MISSING, Field, dataclass, field
from pathlib import Path

from ..contract import did_you_mean
from ..data.augment import SYMMETRIES, Augment
from ..data.readers import WINDOWS
from ..data.synthetic import KINDS
from ..networks.families import BORDERS
from ..networks.initialise import STARTS
from ..networks.registry import trainable
from ..ops.precision import PRECISIONS
from .problems import TASKS
from .schedule import GAMMA_MIN, Phase, published_phases


def option(help: str, default=MISSING, *, flag: str | None = None, choices=None, metavar=None, parse=None):
    """A field of a configuration, with all that `lpn-fast train` shows of it.

    Parameters
    ----------
    help : str
        What it is; the default is added where it is not None.
    default : object
        None where something else decides, and the help says what. Left out: must be given.
    flag : str, optional
        On the command line; None is the field's name.
    choices : tuple or callable that gives one, optional
        Values other than None; others are refused, in files as well.
    metavar : str or tuple of str, optional
        Stands for the value, or the values, in the help.
    parse : callable, optional
        Converts one word to a value, or to an entry of a tuple; raises ArgumentTypeError. None: the field's type.
    """
    metadata = {"help": help, "flag": flag, "choices": choices, "metavar": metavar, "parse": parse}
    return field(default=default, metadata=metadata)


def flag_of(f: Field) -> str:
    """The field's flag, e.g. --batch-size."""
    return "--" + (f.metadata["flag"] or f.name.replace("_", "-"))


def choices_of(f: Field) -> tuple | None:
    """Values that the field may have, or None."""
    choices = f.metadata.get("choices")
    return choices() if callable(choices) else choices


def _gate(text: str) -> tuple[int, ...]:
    """1,1,64 -> (1, 1, 64)."""
    try:
        side, stride, width = (int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"a gate must be side,stride,width, e.g. 1,1,64, got {text!r}") from None
    return side, stride, width


def _name_or_unit(text: str) -> str | float:
    """A name of WINDOWS as it is, Hounsfield units as a number."""
    try:
        return text if text in WINDOWS else float(text)
    except ValueError:
        known = ", ".join(WINDOWS)
        raise ArgumentTypeError(f"a window must be one of {known}, or two numbers, got {text!r}") from None


@dataclass(frozen=True)
class DataConfig:
    """[data]: what is trained on. Names as in `lpn_fast.data.ImageCrops` and `Augment`."""

    sources: tuple[str, ...] = option(
        "images, .npy, DICOM, zip, npz, idx, HDF5, or folders of them", (), flag="data", metavar="PATH"
    )
    synthetic: str | None = option("instead: images made up", None, choices=tuple(KINDS))
    validate: tuple[str, ...] = option("as --data, for the validation PSNR and SSIM", (), metavar="PATH")
    validate_side: int = option("pixels of the centres of validation images", 160)
    channels: int = option("1 = gray, 3 = colour", 1, choices=(1, 3))
    crop: int | None = option("side of the training crops in pixels; networks of one image size bring their own", 64)
    centre: int | None = option("use only the centre of every image, a square of so many pixels", None, metavar="SIDE")
    exclude: str | None = option("text file of image names never to train on, one a line", None, metavar="FILE")
    samples: tuple[int, int] | None = option(
        "only these of the samples; LAST is left out", None, metavar=("FIRST", "LAST")
    )
    validate_samples: tuple[int, int] | None = option("the same of --validate", None, metavar=("FIRST", "LAST"))
    recursive: bool = option("look into folders within folders", False)
    window: str | tuple[float, float] = option(
        f"of DICOM files: {', '.join(WINDOWS)}, or two Hounsfield units", "full", metavar="W", parse=_name_or_unit
    )
    intensities: tuple[float, float] | None = option(
        "stored numbers that become 0 and 1 (default: by their type)", None, metavar=("LOW", "HIGH")
    )
    skip_broken: bool = option("leave out files that cannot be read", False)
    symmetries: str = option("reflections and quarter turns of the crops", "all", choices=SYMMETRIES)
    degrees: float = option("crops are rotated up to this angle", 0.0)
    zoom: float = option("crops are zoomed up to this factor", 1.0)
    probability: float = option("share of the crops that are rotated and zoomed", 1.0)
    contrast: float = option("contrast of the crops varies up to this factor; 1 = never", 1.5)

    def __post_init__(self):
        _check_choices(self, "data.")
        if bool(self.sources) == (self.synthetic is not None):
            raise ValueError("data must have either sources (--data) or synthetic, got both or none")
        if isinstance(self.window, str):
            _one_of("data.window", self.window, tuple(WINDOWS))

    @property
    def augment(self) -> Augment:
        return Augment(self.symmetries, self.degrees, self.zoom, self.probability, self.contrast)

    @property
    def hounsfield(self) -> tuple[float, float] | str | None:
        return WINDOWS[self.window] if isinstance(self.window, str) else self.window


@dataclass(frozen=True)
class ModelConfig:
    """[model]: the architecture, or a trained model to go on from, which brings its own."""

    family: str = option("see families below", "multiscale", choices=trainable)
    hidden: int = option("width: channels per stage, pairs of filters or experts", 48)
    strides: tuple[int, ...] = option("stride of each stage", (1, 2, 1, 2, 1))
    kernel: int = option("side of the core kernels", 3)
    skip_kernel: int = option("side of the skip kernels, or of the frame", 5)
    filters: int = option("filters of an explicit prior, in fours, or of a mixture; 0 for a basis of patches", 0)
    contexts: int = option("contexts in which experts compete, each for a neighbourhood; 0 for none", 0)
    context_window: int | None = option("side of the neighbourhood that has one context", None)
    spacing: int | None = option("pixels from one patch of a mixture to the next, 1 or 2 (default: 1)", None)
    blocks: int = option("blocks of these filters, with groups of their own; 0: all groups see all filters", 0)
    joint: int = option("how many groups of an explicit prior see the filters of all blocks", 0)
    bend: float | None = option("bound on the curvature of an explicit prior, over that of its concave part", None)
    heads: str = option("stages that enter the potential", "all", choices=("last", "all"))
    squared_head: bool = option("first stage: head on z^2 too", True)
    gates: tuple[tuple[int, int, int], ...] | None = option(
        "side, stride, width of each gate (default: two per filter)", None, metavar="K,S,W", parse=_gate
    )
    beta: float | None = option("sharpness of the softplus (default: see families below)", None)
    alpha: float | None = option("strong convexity alpha/2 |x|^2 (default: see families below)", None)
    border: str | None = option(
        "frames under gates of single pixels: how images go on (default: see families below)", None, choices=BORDERS
    )
    initialise: str | None = option("start of the weights (default: what suits the family)", None, choices=STARTS)
    start: str | None = option(
        "go on from a shipped model, a file of one, or the resume file of a run with the same options of the model",
        None,
        metavar="MODEL",
    )

    def __post_init__(self):
        _check_choices(self, "model.")


@dataclass(frozen=True)
class ScheduleConfig:
    """[schedule]: the loss, and how long. None takes what suits the loss."""

    loss: str = option(
        "log = of each image's error; matching = l1, then proximal matching, as published",
        "l2",
        choices=("l2", "l1", "log", "matching"),
    )
    steps: int = option("of all phases together", 20_000)
    pretrain: str = option("before matching; none = fine-tune", "l1", choices=("l1", "l2", "none"))
    learning_rate: float | None = option("of Adam (default 2e-3; before matching 1e-3)", None)
    matching_rate: float = option("of Adam during proximal matching", 1e-4)
    decay: float | None = option("share that the rate falls to on a cosine (default 0.01; matching: 1)", None)
    warmup: int = option("the rate rises over so many steps", 0, metavar="STEPS")
    gamma_min: float = option("last gamma of matching in units of sqrt(n), n entries per sample", GAMMA_MIN)
    halvings: int = option("of gamma during matching", 3)
    gamma_unit: str = option(
        "sigma: gamma is a multiple of the noise level of each sample", "absolute", choices=("absolute", "sigma")
    )

    def __post_init__(self):
        _check_choices(self, "schedule.")

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

    data: DataConfig
    out: str = option("folder for model, card, log and resume file", metavar="DIR")
    sigma: float | tuple[float, float] = option("noise level, or lowest and highest", metavar="S")
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = option("crops per step", 16)
    seed: int = option("of the start, the data and the noise", 0)
    gain_limit: float | None = option("bound the growth of f; below 1 the prior is surely coercive", None, metavar="G")
    clip_norm: float | None = option("scale longer gradients down to this 2-norm", None, metavar="C")
    ema_decay: float | None = option("average the weights, e.g. 0.999", None, metavar="D")
    margin: int = option("pixels at the sides of a crop that the loss leaves out", 0, metavar="M")
    precision: str = option("of the steps, behind an accuracy gate", "fp32", choices=PRECISIONS)
    expansion_weight: float = option("price on |f(u + d) - f(u)| > |d|", 0.0, metavar="W")
    task: str = option(
        "deblur: train the minimisers that the solvers find; reconstruct: those of deblurring, inpainting, masked "
        "frequencies and denoising, in turns",
        "denoise",
        choices=tuple(TASKS),
    )
    validate_every: int = option("steps between validations", 500, metavar="STEPS")
    checkpoint_seconds: float = option("between resume files", 60.0, metavar="SECONDS")
    device: str = option("cpu or cuda", "cpu")
    threads: int | None = option("CPU threads (default: torch's choice)", None)
    tensorboard: bool = option("figures for TensorBoard, too", False)
    verify: bool = option("check in the end that the result is an exact prox", True)

    def __post_init__(self):
        _check_choices(self, "")

    def to_dict(self) -> dict:
        """JSON-ready; `from_dict` reads it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# prefix of a table's keys -> its class
GONE = ("split", "validate_split", "full_scale", "cache")  # entries of older configurations
TABLES = {"": TrainingConfig, "data.": DataConfig, "model.": ModelConfig, "schedule.": ScheduleConfig}


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
        if key in GONE and value is None:  # in the cards of models that were trained without it
            continue
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1) or difflib.get_close_matches(key, _everything(), 1)
            hint = f"; did you mean {_place(near[0], cls, table)!r}?" if near else f"; known are {sorted(hints)}"
            raise ValueError(f"unknown key {table + key!r}{hint}")
        values[key] = _converted(value, hints[key], table + key)
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            if dataclasses.is_dataclass(hints[f.name]):
                values[f.name] = _build(hints[f.name], {}, f"{table}{f.name}.")
            else:
                raise ValueError(f"{table + f.name!r} must be given")
    return cls(**values)


def _converted(value, annotation, name: str):
    """`value` as the annotation says: lists become tuples, whole numbers floats; ValueError otherwise."""
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, dict):
            raise ValueError(f"{name!r} must be a table, got {value!r}")
        return _build(annotation, value, name + ".")
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
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
    raise ValueError(f"{name!r} must be {_described(annotation)}, got {value!r}")


def _described(annotation) -> str:
    return (annotation.__name__ if isinstance(annotation, type) else str(annotation)).replace("NoneType", "None")


def _everything() -> dict[str, str]:
    """Every key -> its table."""
    return {f.name: table for table, cls in TABLES.items() for f in dataclasses.fields(cls)}


def _place(key: str, cls, table: str) -> str:
    return table + key if key in {f.name for f in dataclasses.fields(cls)} else _everything()[key] + key


def _check_choices(config, table: str) -> None:
    """ValueError where a field is none of its choices."""
    for f in dataclasses.fields(config):
        value, choices = getattr(config, f.name), choices_of(f)
        if choices is not None and not (value is None and f.default is None):
            _one_of(table + f.name, value, choices)


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        hint = did_you_mean(value, map(str, allowed))
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}{hint}")
