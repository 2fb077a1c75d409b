"""Ways out of this package: exported graphs here; `lpn_fast.interop.deepinv` (imported by name) for deepinv."""

from .feed_forward import FeedForward, export

__all__ = ["FeedForward", "export"]
