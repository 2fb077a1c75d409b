"""Compiles what the measurements of the convolutions launch, the compiled baselines included, on all cores."""

from .convolutions import PRECISIONS, cases, compile_baseline, compile_for
from .session import Session, run_part
from .warming import warm


def measure(session: Session) -> None:
    """Nothing is measured."""
    names = [name for name, *_ in cases(session.tiny)]
    work = [(compile_baseline, (name, how)) for name in names for how in ("tf32", "fp16", "gradient")]
    warm(session, work + [(compile_for, (name, precision)) for precision in PRECISIONS for name in names])


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
