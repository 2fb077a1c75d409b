"""`lpn-fast train`: a denoiser from folders of images."""

import argparse
from pathlib import Path

import torch

from ..data import ImageCrops, validation_batch
from ..networks import LPN, ConvLPN, RidgeLPN, load
from ..training import Phase, SolverStates, published_phases
from ..training.denoiser import train_denoiser

EXAMPLES = """examples:
  lpn-fast train --data photos --out runs/gray --sigma 0.03
  lpn-fast train --data photos --out runs/any --sigma 0.01 0.1 --steps 20000 --validate val
  lpn-fast train --data photos --out runs/gray --sigma 0.1 --loss matching --steps 40000

The run can be interrupted at any moment; the same command continues it.
"""


def add_parser(subparsers) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "train",
        help="train a denoiser (an exact prox) on folders of images",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="PATH", help="image files or folders to train on")
    add("--out", required=True, metavar="DIR", help="folder for model, card, log and resume file")
    add("--sigma", nargs="+", type=float, required=True, metavar="S", help="noise level, or lowest and highest")
    add("--validate", nargs="+", metavar="PATH", help="image files or folders for the validation PSNR")
    add("--exclude", metavar="FILE", help="text file of image names never to train on, one a line")
    add("--loss", choices=("l2", "l1", "matching"), default="l2", help="matching = the published schedule")
    add("--steps", type=int, default=20_000)
    add("--batch-size", type=int, default=16)
    add("--crop", type=int, default=64, help="side of the training crops in pixels")
    add("--solver-states", type=int, default=0, metavar="N", help="deblurring problems that join every batch")
    add("--expansion-weight", type=float, default=0.0, metavar="W", help="price on |f(u + d) - f(u)| > |d|")
    add("--start", metavar="MODEL", help="go on from this model instead of a fresh one (same architecture)")
    add("--contrast", type=float, default=1.5, help="contrast of the crops varies up to this factor; 1 = never")
    add("--learning-rate", type=float, default=2e-3, help="of Adam; falls to 1 %% on a cosine (l1 and l2)")
    add("--channels", type=int, choices=(1, 3), default=1, help="1 = gray, 3 = colour")
    add("--family", choices=("multiscale", "ridge"), default="multiscale", help="ridge: R is convex, see RidgeLPN")
    add("--hidden", type=int, default=48, help="channels per stage; ridge: pairs of filters")
    add("--strides", nargs="+", type=int, default=[1, 2, 1, 2, 1], help="stride of each stage")
    add("--kernel", type=int, default=3, help="side of the core kernels")
    add("--skip-kernel", type=int, default=5, help="side of the skip kernels")
    add("--heads", choices=("last", "all"), default="all", help="stages that enter the potential")
    add("--squared-head", action=argparse.BooleanOptionalAction, default=True, help="first stage: head on z^2 too")
    add("--gain-limit", type=float, metavar="G", help="bound the growth of f; below 1 the prior is surely coercive")
    add("--beta", type=float, default=100.0, help="sharpness of the softplus")
    add("--alpha", type=float, default=1e-3, help="strong convexity alpha/2 |x|^2")
    add("--validate-every", type=int, default=500, metavar="STEPS")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="CPU threads")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the last step is done."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if len(args.sigma) > 2:
        raise ValueError(f"--sigma takes one noise level or a range of two, got {args.sigma}")
    sigma = args.sigma[0] if len(args.sigma) == 1 else tuple(args.sigma)
    exclude = [Path(line).stem for line in Path(args.exclude).read_text().split()] if args.exclude else []
    crops = ImageCrops(args.data, args.crop, args.channels, exclude, args.contrast)
    validation = validation_batch(args.validate, args.channels) if args.validate else None
    torch.manual_seed(args.seed)
    model = _fresh(args, isinstance(sigma, tuple))
    if args.start:
        _start_from(model, args.start)
    print(
        f"{len(crops.paths)} images, {sum(p.numel() for p in model.parameters()):,} parameters, writing to {args.out}"
    )
    train_denoiser(
        model,
        crops,
        _phases(args),
        sigma=sigma,
        out=args.out,
        batch_size=args.batch_size,
        seed=args.seed,
        gain_limit=args.gain_limit,
        expansion_weight=args.expansion_weight,
        states=SolverStates(args.solver_states) if args.solver_states else None,
        validation=validation,
        validate_every=args.validate_every,
        data_description=f"{len(crops.paths)} images of {', '.join(Path(d).name for d in args.data)}",
    )
    print(f"wrote {args.out}/model.safetensors and card.md: {model.card['result']}")
    return 0


def _fresh(args: argparse.Namespace, conditional: bool) -> LPN:
    shared = {"beta": args.beta, "alpha": args.alpha, "sigma_conditional": conditional}
    if args.family == "ridge":
        return RidgeLPN(args.channels, pairs=args.hidden, kernel=args.skip_kernel, **shared)
    return ConvLPN(
        args.channels,
        hidden=args.hidden,
        strides=tuple(args.strides),
        kernel=args.kernel,
        skip_kernel=args.skip_kernel,
        heads=args.heads,
        squared_head=args.squared_head,
        **shared,
    )


def _start_from(model: LPN, path: str) -> None:
    start = load(path)
    if start.spec != model.spec:
        raise ValueError(f"--start must have the architecture asked for, got {start}; wanted {model}")
    model.load_state_dict(start.state_dict())


def _phases(args: argparse.Namespace) -> list[Phase]:
    if args.loss == "matching":
        return published_phases(args.channels * args.crop**2, args.steps)
    return [Phase(args.loss, args.steps, args.learning_rate, args.learning_rate / 100)]
