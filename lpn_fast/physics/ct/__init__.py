"""Computed tomography with a parallel beam: geometry, projector, filtered back-projection."""

from .geometry import ParallelBeamGeometry
from .operator import ParallelBeamCT

__all__ = ["ParallelBeamCT", "ParallelBeamGeometry"]
