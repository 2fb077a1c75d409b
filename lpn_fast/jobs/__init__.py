"""Jobs beyond one machine: a callable for the engine you have, and `lpn-fast ... --engine ray`.

`Reconstructor` is a task as a function of batches, for any engine. `reconstruct` is a whole job, with inputs and
results at paths or URLs and a manifest that any later call goes on from; `OnRay` runs it on Ray.
"""

from .engine import Tally, reconstruct
from .on_ray import OnRay
from .reconstructor import Reconstructor

__all__ = ["OnRay", "Reconstructor", "Tally", "reconstruct"]
