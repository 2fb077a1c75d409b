"""The denoisers that ship, trained again on the device for as long as there is time, each from its card.

Data are what the card says, where LPN_FAST_DATA (a folder with natural/bsds500 and ct) has them; without them the
synthetic one alone. A short run tells how many steps fit. FOLDER/training/NAME holds model, card and log, of a run
that the same command continues.
"""

import os
import time
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast.training import from_dict, train

from .session import Session, run_part

BATCH = 32
TRIAL = 60  # steps that tell the rate, a third of them to warm up
BSDS = "natural/bsds500"
# under LPN_FAST_DATA: folders to train on; a folder to validate on, or a list of files beside it
NATURAL = ([f"{BSDS}/train", f"{BSDS}/test"], f"{BSDS}/val32.txt")
DATA = {
    "synthetic-gray": None,
    "frame-gray": NATURAL,
    "frame-color": NATURAL,
    "ct": (["ct/train"], "ct/validate"),
}


def measure(session: Session) -> None:
    """One network after the other, an equal share of the time each."""
    names = ["synthetic-gray"] if session.tiny else list(DATA)
    for index, name in enumerate(names):
        share = session.seconds_left / (len(names) - index)
        try:
            _train(session, name, share)
        except FileNotFoundError as missing:
            session.show(f"---- {name}: {missing}")
        except Exception as failure:  # one network's: the others are still trained
            session.check(name, False, f"{type(failure).__name__}: {failure}".splitlines()[0][:200])


def _train(session: Session, name: str, seconds: float) -> None:
    out = session.out / "training" / name
    table = dict(lf.pretrained(name).card["config"])
    data = dict(table["data"], cache=None, exclude=None, validate=[]) | _data(name)
    batch = 2 if session.tiny else BATCH
    table |= {"data": data, "device": session.device, "threads": None, "batch_size": batch, "validate_every": 10**9}

    def run(steps: int, folder: Path, validate: bool = False):
        changes = {"out": str(folder), "schedule": dict(table["schedule"], steps=steps)}
        changes["data"] = table["data"] if validate else dict(table["data"], validate=[])
        start = time.monotonic()
        model = train(from_dict(table | changes), progress=False)
        return model, time.monotonic() - start

    if session.tiny:
        table["data"] = dict(data, crop=16)
        run(1, out)
        return
    _, trial = run(TRIAL // 3, out.with_name(f"{name}-trial-short"))
    _, longer = run(TRIAL, out.with_name(f"{name}-trial"))
    step = max(1e-4, (longer - trial) / (TRIAL - TRIAL // 3))
    steps = int(max(100, min(50_000, 0.7 * (seconds - trial - longer) / step)))
    model, spent = run(steps, out, validate=True)
    result = model.card.get("result", {})
    figures = ", ".join(f"{key} {value:.2f}" for key, value in result.items() if key.startswith("psnr"))
    session.add(
        "training", "ours", spent, "s", family=name, batch=batch, config={"steps": steps, "result": result},
        line=f"{name:<16}{steps:>7} steps of {1e3 * step:.2f} ms, {spent:.0f} s  {figures}",
    )  # fmt: skip
    report = lf.verify(model, torch.rand(4, model.spec.channels, 32, 32, device=session.device), sigma=0.1)
    failed = ", ".join(p.name for p in report.failed)
    session.check(f"{name} is an exact prox", report.all_hold, failed)


def _data(name: str) -> dict:
    """What of a configuration's [data] says where the images are."""
    if DATA[name] is None:
        return {}
    root = Path(os.environ.get("LPN_FAST_DATA", "."))
    sources, validate = [root / path for path in DATA[name][0]], root / DATA[name][1]
    for path in (*sources, validate):
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; LPN_FAST_DATA says where the data are")
    files = [validate]
    if validate.suffix == ".txt":
        files = [validate.parent / line for line in validate.read_text().split()]
    return {"sources": [str(path) for path in sources], "validate": [str(path) for path in files]}


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
