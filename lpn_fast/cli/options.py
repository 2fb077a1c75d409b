"""Arguments that several commands share, and the values they stand for."""

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import torch

from ..networks import LPN, is_shipped, list_pretrained, shipped_or_loaded

DEFAULT_MODEL = "fast-gray"
AUTO = "auto"


def add_model(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    auto = "; auto takes a shipped one that suits the image" if default == AUTO else ""
    about = f"shipped model (see lpn-fast info) or a file of lpn_fast.save{auto} (default: %(default)s)"
    parser.add_argument("--model", default=default, metavar="NAME_OR_PATH", help=about)


def number(kind: type, word: str | None = None, meaning: str | None = None) -> Callable[[str], object]:
    """A type of arguments: positive numbers, or a word."""
    wanted = ("a positive whole number" if kind is int else "a positive number") + (f" or {word}" if word else "")

    def parsed(text: str):
        with contextlib.suppress(ValueError):
            if text == word or 0 < kind(text) < math.inf:
                return meaning if text == word else kind(text)
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")

    return parsed


NUMBER_OR_AUTO = number(float, AUTO)
POSITIVE, COUNT = number(float), number(int)


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=COUNT, metavar="N", help="CPU threads (default: torch's choice)")


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def load_model(name_or_path: str, device: str = "cpu") -> LPN:
    """A shipped model by name, or one from a file; FileNotFoundError for neither."""
    if is_shipped(name_or_path) or Path(name_or_path).is_file():
        return shipped_or_loaded(name_or_path, device)
    shipped = ", ".join(list_pretrained()) or "none"
    raise FileNotFoundError(f"--model must be a shipped model ({shipped}) or an existing file, got {name_or_path!r}")


def describe_level(model: LPN, sigma: float | None) -> str:
    """The noise level the network works at, in words, with a warning outside the levels it knows."""
    if not model.is_noise_conditional:
        own = model.card.get("sigma")
        return "its one noise level" + (f", {own:g}" if isinstance(own, int | float) else "")
    low, high = model.spec.noise_levels[0], model.spec.noise_levels[-1]
    if low <= sigma <= high:
        return f"sigma {sigma:.4g}"
    return f"sigma {sigma:.4g}, treated as the nearest it knows ({low:g} to {high:g})"
