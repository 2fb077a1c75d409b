"""CUDA C++ kernels: sources, compiled into lpn_fast._cuda, and where they were measured faster (measured.csv)."""
