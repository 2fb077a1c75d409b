"""Compiles what the checks of the convolutions launch, on all cores: one process per network and precision."""

from .numerics import TOLERANCE, compile_for, networks
from .session import Session, run_part
from .warming import warm


def measure(session: Session) -> None:
    """Nothing is measured."""
    names = [name for name, model, _ in networks(session.tiny) if not model.spec.is_dense]
    warm(session, [(compile_for, (name, precision)) for precision in TOLERANCE for name in names])


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
