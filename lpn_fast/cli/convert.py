"""A published checkpoint into a model.

Read a .pt checkpoint of the published code (no code in it is executed) and write it as a safetensors file that
every other command takes as --model. The architecture is one of the published ones, or what the model.json
beside the checkpoint says.

examples:
  lpn-fast convert model.pt -o mayoct.safetensors --family mayoct --sigma 0.1
  lpn-fast convert model.pt -o faces.safetensors --config exps/celeba/model.json --note "trained by ..., licence ..."
  lpn-fast verify mayoct.safetensors                        then see that it is an exact prox
"""

from pathlib import Path

from ..networks import from_reference, save
from ..networks.published import NAMES, published_config
from ..training.config import read_config
from . import options


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="FILE.pt", help="a state dict, or a file that holds one as model_state_dict")
    add("-o", "--out", type=Path, required=True, metavar="FILE.safetensors", help="must not be there yet")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--family", choices=NAMES, help="the published architecture")
    which.add_argument("--config", type=Path, metavar="model.json", help="the published code's description of it")
    add("--sigma", type=options.POSITIVE, metavar="S", help="noise level it was trained for, kept in the card")
    add("--note", metavar="TEXT", help="where it comes from and under which licence, kept in the card")


def run(args) -> int:
    if args.out.exists():
        raise ValueError(f"--out must name a new file, {args.out} is there already")
    config = published_config(args.family) if args.config is None else read_config(args.config)
    model = from_reference(args.checkpoint, config)
    said = {"converted_from": args.checkpoint.name, "config": config, "sigma": args.sigma, "note": args.note}
    model.card = {name: value for name, value in said.items() if value is not None}
    save(model, args.out)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    advice = f"lpn-fast verify {args.out} tests that it is an exact prox"
    print(f"{args.out}: {config['model']}, {numbers} numbers; {advice}")
    return 0
