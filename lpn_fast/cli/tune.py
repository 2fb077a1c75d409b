"""Check the GPU kernels on this device.

Check the GPU kernels on this device with the weights of a model: results against float64 at small and odd sizes, the
same bits in repeated calls, and the time against plain torch, eager and compiled. What is found is kept for this user,
and decides which kernels run from then on; `lpn-fast info` lists it. First calls do the same with random weights where
nothing is known, but do not compile; LPN_FAST_TUNE=off leaves that out.

examples:
  lpn-fast tune
  lpn-fast tune --model fast-color --precision fp16 fp32
"""

import argparse

import torch

from ..networks.explanation import examine
from ..ops import admission
from ..ops.precision import PRECISIONS
from . import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: cuda)")
    checked = ["fp32", "fp16"]
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=checked, help="(default: fp32 fp16)")
    parser.set_defaults(when_interrupted="what was checked is kept")


def run(args: argparse.Namespace) -> int:
    if torch.device(args.device).type != "cuda":
        raise ValueError(f"--device must be cuda or cuda:N, got {args.device}; CPU kernels need no check")
    model = options.load_model(args.model, args.device)
    for precision in args.precision if model.spec.kind != "explicit" else ["fp32"]:
        for name, found in examine(model, precision).items():
            print(f"{name}, {precision}: {found}")
    print(f"kept in {admission.folder()}")
    return 0
