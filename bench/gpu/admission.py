"""The check of lpn_fast/ops/admission.py for the models that ship: what "auto" runs on this device, and why.

The verdicts go where a user's go (LPN_FAST_CACHE); the figures get a line for every work that was timed. There is no
time for torch.compile of all of them: `lpn-fast tune` compares with that.
"""

import torch

import lpn_fast as lf
from lpn_fast.networks.explanation import examine
from lpn_fast.ops import device_check, registry

from . import arithmetic
from .session import Session, run_part

PRECISIONS = ("fp16", "fp32")


def models(tiny: bool):
    """(name, model); networks of one spec are checked once, as "auto" does not tell their weights apart."""
    if tiny:
        yield "tiny", lf.FrameLPN(1, kernel=2, gates=((1, 1, 5),))
        return
    seen = set()
    for name, model in arithmetic.models():
        if model.spec not in seen:
            seen.add(model.spec)
            yield name, model


def measure(session: Session) -> None:
    for precision in PRECISIONS[-1:] if session.tiny else PRECISIONS:
        for name, model in models(session.tiny):
            if session.seconds_left < 0:
                session.show(f"---- no time left for {name} {precision}")
                continue
            model = model.to(session.device)
            if session.device == "cpu":
                _dry(session, model, precision)
                continue
            if model.spec.kind == "explicit" and precision != "fp32":
                continue
            found = examine(model, precision, compiled=False)
            for backend, verdict in found.items():
                session.show(f"{name} {backend} {precision}: {verdict}")
                if isinstance(verdict, str):
                    continue
                session.check(f"{name} {backend} {precision}", not verdict.wrong, verdict.wrong or "")
                for work, gain in verdict.findings.gains.items():
                    session.add(work, backend, gain, "times", metric="gain", precision=precision, family=name)


def _dry(session: Session, model, precision: str) -> None:
    """Without a device torch stands beside itself, at the smallest sizes."""
    plain = registry._backends["torch"]
    findings = device_check.check(plain, plain, model.spec, torch.device("cpu"), precision, model.packed().detach())
    session.check("torch beside itself", not findings.wrong, str(findings))


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
