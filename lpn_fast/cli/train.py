"""`lpn-fast train`: a denoiser from images, from a configuration file, from flags, or from both."""

import argparse
import dataclasses

import torch

from ..networks import LPN
from ..networks.initialise import STARTS
from ..prior import verify
from ..training.config import FAMILIES, DataConfig, from_dict, merge, read_config
from ..training.denoiser import write_result
from ..training.distributed import current_group, join, launched_by_torchrun, leave
from ..training.run import build_crops, train

EXAMPLES = """examples:
  lpn-fast train --data photos --out runs/gray --sigma 0.03
  lpn-fast train --data photos.zip --out runs/any --sigma 0.01 0.1 --steps 20000 --validate val
  lpn-fast train --data photos --out runs/map --sigma 0.1 --loss matching --steps 40000
  lpn-fast train --data photos --out runs/tuned --sigma 0.1 --start runs/gray/model.safetensors \\
      --loss matching --pretrain none                    # fine-tune a denoiser by proximal matching
  lpn-fast train --synthetic dead-leaves --out runs/leaves --sigma 0.1    # nothing to download
  lpn-fast train --config run.toml --seed 3              # flags go before the file
  torchrun --nproc-per-node 2 -m lpn_fast.cli train --config run.toml

The run can be interrupted at any moment; the same command continues it. A configuration file holds the same
names as the flags, in the tables [data], [model] and [schedule]; see lpn_fast/training/config.py.
"""

# flag -> place in the configuration
PLACES = {
    "data": "data.sources",
    "synthetic": "data.synthetic",
    "validate": "data.validate",
    "exclude": "data.exclude",
    "crop": "data.crop",
    "centre": "data.centre",
    "channels": "data.channels",
    "contrast": "data.contrast",
    "cache": "data.cache",
    "start": "model.start",
    "family": "model.family",
    "hidden": "model.hidden",
    "initialise": "model.initialise",
    "strides": "model.strides",
    "gates": "model.gates",
    "kernel": "model.kernel",
    "skip_kernel": "model.skip_kernel",
    "heads": "model.heads",
    "squared_head": "model.squared_head",
    "beta": "model.beta",
    "alpha": "model.alpha",
    "loss": "schedule.loss",
    "pretrain": "schedule.pretrain",
    "steps": "schedule.steps",
    "learning_rate": "schedule.learning_rate",
    "gamma_min": "schedule.gamma_min",
    "warmup": "schedule.warmup",
}


def add_parser(subparsers) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "train",
        help="train a denoiser (an exact prox) on images",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is left to the file, then to the defaults
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="TOML or JSON")
    add("--data", nargs="+", metavar="PATH", help="images, .npy, DICOM, zip, npz, idx, HDF5, or folders of them")
    add("--synthetic", metavar="KIND", help="instead: dead-leaves, ellipses or phantoms, made up")
    add("--out", metavar="DIR", help="folder for model, card, log and resume file")
    add("--sigma", nargs="+", type=float, metavar="S", help="noise level, or lowest and highest")
    add("--validate", nargs="+", metavar="PATH", help="the same, for the validation PSNR and SSIM")
    add("--exclude", metavar="FILE", help="text file of image names never to train on, one a line")
    add(
        "--loss",
        choices=("l2", "l1", "log", "matching"),
        help="default l2; log = of each image's error; matching = the published schedule",
    )
    add("--pretrain", choices=("l1", "l2", "none"), help="before matching (default l1); none = fine-tune")
    add("--gamma-min", type=float, metavar="G", help="last gamma of matching in units of sqrt(n) (default 0.08)")
    add("--steps", type=int, help="default 20000")
    add("--batch-size", type=int, help="default 16")
    add("--crop", type=int, help="side of the training crops in pixels (default 64)")
    add("--centre", type=int, metavar="SIDE", help="use only the centre of every image, a square of so many pixels")
    add("--cache", metavar="DIR", help="keep decoded images there, mapped into memory")
    add("--task", choices=("denoise", "deblur"), help="deblur: train the minimisers that the solvers find")
    add("--expansion-weight", type=float, metavar="W", help="price on |f(u + d) - f(u)| > |d|")
    add("--start", metavar="MODEL", help="go on from a shipped model or a file of one")
    add("--contrast", type=float, help="contrast of the crops varies up to this factor (default 1.5; 1 = never)")
    add("--learning-rate", type=float, help="of Adam (default 2e-3, falling to 1 %% on a cosine, for l1 and l2)")
    add("--warmup", type=int, metavar="STEPS", help="the rate rises over so many steps")
    add("--margin", type=int, metavar="M", help="pixels at the sides of a crop that the loss leaves out (default 0)")
    add("--clip-norm", type=float, metavar="C", help="scale longer gradients down to this 2-norm")
    add("--ema-decay", type=float, metavar="D", help="average the weights, e.g. 0.999")
    add("--precision", choices=("fp32", "tf32", "bf16", "fp16"), help="of the steps, behind an accuracy gate")
    add("--channels", type=int, choices=(1, 3), help="1 = gray (default), 3 = colour")
    add(
        "--family",
        choices=FAMILIES,
        help="default multiscale; frame, mixture and ridge: see FrameLPN ...; published",
    )
    add(
        "--initialise",
        choices=STARTS,
        help="start of the weights (default: principled without a squared head; frame, mixture: own)",
    )
    add("--hidden", type=int, help="channels per stage (default 48); ridge: pairs of filters; mixture: experts")
    add("--strides", nargs="+", type=int, help="stride of each stage (default 1 2 1 2 1)")
    add("--gates", nargs="*", type=_gate, metavar="K,S,W", help="frame: side, stride, width of each gate")
    add("--kernel", type=int, help="side of the core kernels (default 3)")
    add("--skip-kernel", type=int, help="side of the skip kernels, or of the frame (default 5)")
    add("--heads", choices=("last", "all"), help="stages that enter the potential (default all)")
    add("--squared-head", action=argparse.BooleanOptionalAction, help="first stage: head on z^2 too (default yes)")
    add("--gain-limit", type=float, metavar="G", help="bound the growth of f; below 1 the prior is surely coercive")
    add("--beta", type=float, help="sharpness of the softplus (default 100; frame: 1)")
    add("--alpha", type=float, help="strong convexity alpha/2 |x|^2 (default 0.001; frame, mixture: 0.0001)")
    add("--validate-every", type=int, metavar="STEPS", help="default 500")
    add("--seed", type=int, help="default 0")
    add("--device", help="cpu (default) or cuda")
    add("--threads", type=int, help="CPU threads")
    add("--tensorboard", action="store_true", help="figures for TensorBoard, too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and verify; 0 when the last step is done and the result is an exact prox, 1 if it is not."""
    given = {name: value for name, value in vars(args).items() if name not in ("run", "command", "config")}
    config = from_dict(merge(read_config(args.config) if "config" in args else {}, _as_tables(given)))
    if config.threads:
        torch.set_num_threads(config.threads)
    if launched_by_torchrun():
        device = join(config.device)
        config = from_dict(config.to_dict() | {"device": str(device)})
    try:
        model = train(config)
        if not current_group().leads:
            return 0
        holds = True
        if config.verify:
            sample = _sample(config.data, model)
            levels = config.sigma if isinstance(config.sigma, tuple) else None
            report = verify(model, sample.to(config.device), None if levels is None else (levels[0] * levels[1]) ** 0.5)
            holds = report.all_hold
            model.card["verified"] = "every property" if holds else f"NOT: {', '.join(p.name for p in report.failed)}"
            print(report)
            write_result(model, config.out)
        print(f"wrote {config.out}/model.safetensors and card.md: {model.card['result']}")
        return 0 if holds else 1
    finally:
        leave()


def _gate(text: str) -> tuple[int, ...]:
    """1,1,64 -> (1, 1, 64)."""
    try:
        side, stride, width = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a gate is side,stride,width, e.g. 1,1,64, got {text!r}") from None
    return side, stride, width


def _sample(data: DataConfig, model: LPN) -> torch.Tensor:
    """Two crops of the training data, (2, C, crop, crop); no more than two images are read for them."""
    first = data.samples[0] if data.samples else 0
    few = dataclasses.replace(data, samples=(first, first + 2), cache=None)
    return build_crops(few, model, pool=2)(2, torch.Generator().manual_seed(0))


def _as_tables(given: dict) -> dict:
    """Flags as the nested tables of a configuration."""
    tables: dict = {}
    for name, value in given.items():
        if name == "sigma" and len(value) == 1:
            value = value[0]
        *table, key = PLACES.get(name, name).split(".")
        (tables.setdefault(table[0], {}) if table else tables)[key] = value
    return tables
