"""Reconstruct a batch of images.

Reconstruct images from measurements by plug-and-play with a learned prior.

Noise level, network and solver are chosen by themselves unless given. With --solver, what it minimises and the
conditions of its convergence theorem are printed first, with numbers. Results keep name, format and bit depth;
those of measurements that are no images (sinograms, k-space, vectors, as .npy, .npz, .h5 or float TIFF) are float
arrays. Finished images are never overwritten: the same command goes on where it stopped.

examples:
  lpn-fast reconstruct photos/ -o sharp --blur-sigma 1.6
  lpn-fast reconstruct "scans/*.tif" -o sharp --kernel motion.npy --boundary full --noise 0.01 --solver admm
  lpn-fast reconstruct holes/ -o whole --physics inpaint --mask seen.png
  lpn-fast reconstruct small/ -o large --physics downsample --factor 2
  lpn-fast reconstruct sinograms.h5 -o slices --physics ct --geometry scan.toml
  lpn-fast reconstruct kspace.h5 -o knees --physics mri --mask lines.npy --centred
  lpn-fast reconstruct vectors.npy -o images --physics cs --size 64 64 --ratio 0.25 --noise 0.01
  lpn-fast reconstruct vectors.npy -o images --physics matrix --operator system.npz --size 32 32 --noise 0.05
  lpn-fast reconstruct @files.txt -o listed --report sharp.html         files named in a text file; a page about it
  lpn-fast reconstruct truths/ -o test --simulate                       measures them first; prints PSNR and SSIM
  torchrun --nproc-per-node 2 -m lpn_fast.cli reconstruct photos/ -o shared
  lpn-fast reconstruct s3://scans/photos -o s3://scans/sharp --blur-sigma 1.6 --engine ray --address auto
"""

from .. import pipeline
from ..pipeline.batches import Networks
from ..pipeline.tasks import SOLVERS
from . import batch, operators, options

SIMULATED_NOISE = 0.03


def add_arguments(parser) -> None:
    batch.add_images_out(parser)
    operators.add_arguments(parser)
    add = parser.add_argument
    noise = "standard deviation, images in [0, 1] (default: auto, what each measurement shows; 0.03 with --simulate)"
    add("--noise", type=options.NUMBER_OR_AUTO, metavar="S", help=noise)
    add("--solver", choices=tuple(SOLVERS), help="(default: chosen; pgd if one of the next three is given)")
    add("--iterations", type=int, metavar="N", help="at most (default: 100)")
    sigma = "level of the network's prior, larger is smoother (default: the MAP choice, by noise and step)"
    add("--sigma", type=float, metavar="S", help=sigma)
    add("--strict", action="store_true", help="refuse to run outside the convergence theorem")


def run(args) -> int:
    if args.simulate and args.noise is None:
        args.noise = SIMULATED_NOISE
    if args.solver is None and (args.iterations is not None or args.sigma is not None or args.strict):
        args.solver = "pgd"
    problem, noise = operators.problem_of(args), args.noise
    if args.intensities is not None and noise is not None and problem.arrays is not None:
        noise /= args.intensities[1] - args.intensities[0]
    chosen = {name: getattr(args, name) for name in ("solver", "iterations", "sigma", "strict")}
    task = pipeline.Reconstruct(problem, noise, **chosen)
    model, share = batch.prepare(args)
    network = None if task.solver is None else Networks(model, args.device, task.networks)[problem.kind]
    conditions = None if network is None else task.conditions(network)
    seen = "the noise that each measurement shows" if args.noise is None else f"noise {args.noise:g}"
    by = f"{args.solver or 'a solver that suits'}, {'a model that suits' if model == options.AUTO else args.model}"
    if model != options.AUTO and not model.is_noise_conditional:
        by += f" at {options.describe_level(model, None)}"
    return batch.run(args, task, model, share, f"{problem.physics}, {seen}; {by}", conditions)
