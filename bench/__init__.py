"""Measurements of lpn_fast: experiments with their results, run from a checkout as `python -m bench.experiments`."""
