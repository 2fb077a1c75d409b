"""Jobs beyond one machine: a callable for the engine you have, and `lpn-fast ... --engine ray`."""

from .reconstructor import Reconstructor

__all__ = ["Reconstructor"]
