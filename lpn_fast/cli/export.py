"""f as an ONNX or torch.export file.

Write f, or f and psi, as a plain feed-forward graph: .onnx for onnxruntime and other ONNX readers, .pt2 for
torch.export. The file is checked against the model before it gets its name; sizes are free unless they are given.

examples:
  lpn-fast export fast-gray -o prox.onnx
  lpn-fast export run/model.safetensors -o prox.pt2 --size 256 256 --batch 1 --potential
"""

from pathlib import Path

from ..interop import export
from . import options


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("model", metavar="NAME_OR_PATH", help="shipped model or a file of lpn_fast.save")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="its suffix, .onnx or .pt2, decides the format")
    add("--size", type=options.COUNT, nargs=2, metavar=("H", "W"), help="of the images (default: any)")
    add("--batch", type=options.COUNT, metavar="N", help="number of images (default: any)")
    add("--potential", action="store_true", help="give psi(x) as a second output")


def run(args) -> int:
    model = options.load_model(args.model)
    path = export(model, args.out, size=args.size, batch=args.batch, potential=args.potential)
    inputs = "x, sigma" if model.is_noise_conditional else "x"
    print(f"{path}: ({inputs}) -> {'(f, psi)' if args.potential else 'f'}, {path.stat().st_size / 2**20:.1f} MB")
    return 0
