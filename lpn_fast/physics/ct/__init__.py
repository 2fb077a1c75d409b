"""Computed tomography with a parallel beam: geometry, projector, filtered back-projection."""

from lpn_fast.physics.ct.geometry import ParallelBeamGeometry
from lpn_fast.physics.ct.operator import ParallelBeamCT

__all__ = ["ParallelBeamCT", "ParallelBeamGeometry"]
