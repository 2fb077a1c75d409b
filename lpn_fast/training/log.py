"""What a run says: a CSV row per validation, lines for events, and an early answer to "is it worth waiting?".

    log.csv      step, seconds, loss, learning_rate, figures of the validation
    train.log    one line per event: start, early answer, precision, going back, what could not be written
    events.*     the figures for TensorBoard, where it is installed and asked for

Rows of steps that a kill or a NaN undid are removed when the run goes on. A log that cannot be written (a full
disk) ends no run.
"""

import csv
import math
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from tqdm.auto import tqdm

from .. import atomic

EARLY_SECONDS = 60.0
WINDOW = 20  # steps whose mean loss is shown


class RunLog:
    """Writes to the folder `out`, if there is one, and to the terminal, if `show`."""

    def __init__(self, out: Path | None, show: bool = True, tensorboard: bool = False):
        self.out, self.show = out, show
        self._board = _summary_writer(out) if tensorboard and out is not None else None

    def say(self, text: str) -> None:
        """A line for an event."""
        if self.show:
            tqdm.write(text)
        if self.out is not None:
            with suppress(OSError), open(self.out / "train.log", "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def row(self, step: int, figures: dict) -> None:
        """A row of figures."""
        if self.out is None:
            return
        path = self.out / "log.csv"
        fresh = not path.exists()
        row = {"step": step, **figures}
        with suppress(OSError), open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def forget_after(self, step: int) -> None:
        """Remove the rows of later steps."""
        path = None if self.out is None else self.out / "log.csv"
        if path is None or not path.exists():
            return
        with open(path, newline="") as file:
            rows = list(csv.reader(file))
        kept = rows[:1] + [r for r in rows[1:] if r and r[0].isdigit() and int(r[0]) <= step]
        if kept == rows:
            return
        with suppress(OSError), atomic.replacing(path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows(kept)


class Pace:
    """Speed and direction of a run.

    Parameters
    ----------
    total : int
        Steps of the whole run.
    first : int
        Step this session starts from.
    """

    def __init__(self, total: int, first: int):
        self.total, self.first = total, first
        self.started = time.monotonic()
        self.recent: deque = deque(maxlen=WINDOW)  # losses of the last steps, as tensors
        self.means: list[float] = []  # mean losses of whole windows of one phase

    def note(self, loss) -> None:
        """The loss of a step."""
        self.recent.append(loss)

    def window_ends(self) -> float:
        """Mean loss of the window that is complete now; waits for the device."""
        self.means.append(self.mean_loss())
        return self.means[-1]

    def mean_loss(self) -> float:
        """Mean loss of the last steps, nan before the first."""
        return math.fsum(float(loss) for loss in self.recent) / len(self.recent) if self.recent else math.nan

    def new_phase(self) -> None:
        """Losses of different phases do not compare."""
        self.means.clear()
        self.recent.clear()

    def answer(self, step: int) -> str:
        """Steps per second, time left, and whether the loss moves."""
        seconds = time.monotonic() - self.started
        speed = (step - self.first) / max(seconds, 1e-9)
        left = f"{(self.total - step) / speed / 60:.1f} min left" if speed > 0 else "time left unknown"
        return f"after {seconds:.0f} s: {speed:.3g} steps/s, {left}; {direction(self.means)}"


def direction(means: list[float]) -> str:
    """In words, whether mean losses of successive windows fall, rise or stand still.

    The first third is compared with the last third; their difference counts if it is twice its standard error.
    """
    if len(means) < 6:
        return "too few steps to say whether the loss moves"
    third = len(means) // 3
    first, last = means[:third], means[-third:]
    a, b = (math.fsum(part) / third for part in (first, last))
    spread = [math.fsum((v - m) ** 2 for v in part) for part, m in ((first, a), (last, b))]
    error = math.sqrt(sum(spread) / max(1, 2 * third - 2) * 2 / third)
    word = "does not move" if abs(a - b) <= 2 * error else "falls" if b < a else "RISES"
    return f"the loss {word}: {a:.4g} -> {b:.4g}"


def _summary_writer(out: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard=True needs the package: pip install tensorboard") from error
    return SummaryWriter(str(out))
