"""CUDA C++ kernels: sources, compiled into lpn_fast._cuda."""
