"""Arguments that several commands share, and the values they stand for."""

import argparse
from pathlib import Path

import torch

from ..networks import LPN, list_pretrained, shipped_or_loaded

DEFAULT_MODEL = "natural-gray"
AUTO = "auto"


def add_command(subparsers, name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of a command, with examples below its help."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    """Which network."""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME_OR_PATH",
        help="shipped model (see lpn-fast info) or a file of lpn_fast.save"
        + ("; auto takes a shipped one that suits the image" if default == AUTO else "")
        + " (default: %(default)s)",
    )


def noise_level(text: str) -> float | None:
    """A number, or None for `auto`."""
    if text == AUTO:
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or {AUTO}, got {text!r}") from None


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where it runs."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")


def set_threads(threads: int | None) -> None:
    """Use that many CPU threads; ValueError below 1."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def load_model(name_or_path: str, device: str = "cpu") -> LPN:
    """A shipped model by name, or one from a file.

    Raises
    ------
    ValueError
        Neither, a file that is no model, or a device that is not there.
    """
    device = checked_device(device)
    if name_or_path in list_pretrained() or Path(name_or_path).is_file():
        return shipped_or_loaded(name_or_path, device)
    shipped = ", ".join(list_pretrained()) or "none"
    raise ValueError(f"--model must be a shipped model ({shipped}) or an existing file, got {name_or_path!r}")


def checked_device(name: str) -> torch.device:
    """The device of that name, which answers; else a ValueError."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that torch can use here, got {name}; try cpu") from error
    return device


def load_image_model(name_or_path: str, device: str = "cpu") -> LPN | str:
    """As `load_model`, for commands that work on image files; a ValueError for a network of vectors or volumes.

    `auto` is returned as it is, once the device is known to be there.
    """
    if name_or_path == AUTO:
        checked_device(device)
        return AUTO
    model = load_model(name_or_path, device)
    if len(model.spec.axes) != 2:
        kind = "vectors" if model.spec.is_dense else "volumes"
        raise ValueError(f"--model must be a network of images, {name_or_path} is one of {kind}; use it from Python")
    return model


def describe_level(model: LPN, sigma: float | None) -> str:
    """The noise level the network works at, in words, with a warning outside the levels it knows."""
    if sigma is None:
        own = model.card.get("sigma")
        return "its one noise level" + (f", {own:g}" if isinstance(own, int | float) else "")
    low, high = model.spec.noise_levels[0], model.spec.noise_levels[-1]
    if low <= sigma <= high:
        return f"sigma {sigma:.4g}"
    return f"sigma {sigma:.4g}, treated as the nearest it knows ({low:g} to {high:g})"
