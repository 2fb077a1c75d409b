"""GPU kernels, installed as `lpn_fast.kernels`.

Triton kernels are Python files in this directory. CUDA C++ kernels are `.cu` files in `cuda/`, compiled
into `lpn_fast._cuda` where a CUDA compiler is found at build time. Nothing is imported here: neither Triton
nor a GPU is needed to import the package, and each backend loads what it uses.
"""
