"""CUDA C++ kernels: sources, compiled into lpn_fast._cuda, and where measurements admit them (admitted.py)."""
