"""Inverse problems against what a user would pick: `python -m bench.reconstruction --help`.

data.py         photographs and CT slices, blur kernels, baseline weights, found in a data folder
tasks.py        what is measured: operator, noise, the simple answer that every method starts from
ours.py         the package's solvers, inside their theorems and as published
baselines.py    total variation, PnP-DnCNN, a weakly convex ridge regulariser, BM3D
quality.py      one row per task and method: PSNR, SSIM, iterations, seconds, memory, conditions
throughput.py   a batch against the published way; what the objective costs
oscillating.py  operators outside the o-minimal class
figures.py      images side by side, objectives
"""
