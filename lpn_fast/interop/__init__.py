"""Ways out of this package: exported graphs here; `lpn_fast.interop.deepinv` (imported by name) for deepinv."""

from .export import FeedForward, export

__all__ = ["FeedForward", "export"]
