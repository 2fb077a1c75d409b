"""Batch jobs under bad conditions: killed at random, on full disks, in several processes. Nothing is lost or redone."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killed_job import BATCH, SCALE, SIDE, SIGMA, TASKS

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.pipeline import Denoise, Reconstruct, Share, batches, problems, reconstruct
from lpn_fast.pipeline.flow import Background, Solvers, ahead_of_time, in_order, ticking
from lpn_fast.pipeline.manifest import ItemResult, lock_of, manifest_name, open_manifest, read_results

ROOT = Path(lf.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lf.ConvLPN(1, hidden=2, strides=(1, 2), sigma_conditional=True).eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    return lf.save(model, tmp_path / "model.safetensors")


def numbered_images(folder, count):
    """Arrays (SIDE, SIDE) whose first value is their number / SCALE."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        array = generator.random((SIDE, SIDE)).astype(np.float32)
        array[0, 0] = number / SCALE
        np.save(folder / f"{number:04d}.npy", array)
    return folder


def assert_all_right(folder, out, model):
    """Every result is f of its image."""
    paths = sorted(folder.iterdir())
    images = torch.from_numpy(np.stack([np.load(path) for path in paths]))[:, None]
    with torch.no_grad():
        wanted = model(images, sigma=SIGMA)[:, 0].numpy()
    results = np.stack([np.load(out / path.name) for path in paths])
    assert np.abs(results - wanted).max() <= 1e-5
    assert not list(out.glob(".*.tmp"))


# ---- killed


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("task", ["denoise", "reconstruct", "prior"])
def test_a_job_of_three_hundred_images_killed_six_times_ends_with_all_and_does_none_twice(
    tmp_path, checkpoint, model, task, world
):
    folder, out, kills = numbered_images(tmp_path / "images", 300), tmp_path / "out", 6
    script = Path(__file__).parent / "killed_job.py"
    command = [sys.executable, script, task, folder, out, checkpoint, world, kills, 3 + world]
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    story = json.loads(done.stdout)
    *killed, last = [r["ends"] for r in story["rounds"]]
    assert len(killed) == kills and last == [0] * world, done.stderr
    for ends in killed:  # a process may have done its share before the others are killed
        assert -signal.SIGKILL in ends and set(ends) <= {-signal.SIGKILL, 0}, done.stderr
    assert not re.search(r"^process \d: ", done.stderr, re.MULTILINE), done.stderr  # nor did any in a killed round
    assert all(r["computed_again"] == [] for r in story["rounds"])
    # lost by a kill: at most the batch being computed and the one being written, of each process
    assert 300 <= story["computed"] <= 300 + kills * world * 2 * BATCH
    assert story["rounds"][-1]["finished"] == 300
    if task == "denoise":
        assert_all_right(folder, out, model)
    else:
        straight = reconstruct(folder, tmp_path / "straight", task=TASKS[task], model=lf.load(checkpoint))
        results = read_results(out)
        for result in straight.done:
            if task == "prior":
                assert results[result.item].value == pytest.approx(result.value, rel=1e-3, abs=1e-3)
            else:
                a, b = np.load(out / result.item), np.load(tmp_path / "straight" / result.item)
                assert np.abs(a - b).max() <= 1e-4, result.item
        assert not list(out.rglob(".*.tmp"))


def launch(count, folder, out, checkpoint, *options):
    """The arguments of `torchrun --nproc-per-node count -m lpn_fast.cli denoise ...`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *options]
    job = ["-m", "lpn_fast.cli", "denoise", folder, "-o", out, "--model", checkpoint, "--sigma", SIGMA]
    return list(map(str, [*command, *job, "--threads", 1, "--batch-pixels", SIDE * SIDE]))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_work_and_give_the_results_of_one(tmp_path, checkpoint, model, world):
    folder = numbered_images(tmp_path / "images", 31)
    np.save(folder / "stack.npy", np.load(folder / "0003.npy")[None, None].repeat(7, 0))
    (folder / "broken.png").write_text("no picture")
    command = launch(world, folder, tmp_path / "out", checkpoint)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    lines = re.findall(r"process (\d) of \d: (\d+) done, (\d) failed", done.stdout)
    assert sorted(rank for rank, _, _ in lines) == [str(rank) for rank in range(world)], done.stdout + done.stderr
    assert (
        sum(int(count) for _, count, _ in lines) == 38 and min(int(count) for _, count, _ in lines) + 1 >= 38 // world
    )
    assert done.returncode != 0 and done.stdout.count("broken.png: cannot identify") == 1
    reconstruct(folder, tmp_path / "one", task=Denoise(SIGMA), model=model, batch_pixels=SIDE * SIDE)
    for path in sorted((tmp_path / "one").glob("*.npy")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    # one process goes on where two or three were, and finds everything done
    again = reconstruct(folder, tmp_path / "out", task=Denoise(SIGMA), model=model)
    assert len(again.skipped) == 38 and not again.done


def test_a_killed_worker_is_started_again_and_finishes_the_job(tmp_path, checkpoint, model):
    """Killed after some of its images: the line of one comes before its file, so the first might count for nothing."""
    folder, out, some = numbered_images(tmp_path / "images", 600), tmp_path / "out", 10
    command = launch(2, folder, out, checkpoint, "--max-restarts", 2, "--monitor-interval", 0.1)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        worker, deadline = None, time.monotonic() + 60
        while worker is None:
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.005)
            if lines(out / "manifest.1.jsonl") >= some:
                worker = process_that_locks(lock_of(out / "manifest.1.jsonl"))
        os.kill(worker, signal.SIGKILL)
        output = process.communicate(timeout=100)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "finished earlier" in output  # so the kill came before the end
    assert len(read_results(out)) == 600
    assert_all_right(folder, out, model)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def process_that_locks(path):
    """The process that holds the lock on a file; None once it has ended."""
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rsplit(":", 1)[-1] == str(inode):
            return int(words[4])
    return None


def test_two_jobs_cannot_work_in_one_folder_whatever_their_number_of_processes(tmp_path, model):
    folder, out = numbered_images(tmp_path / "images", 2), tmp_path / "out"
    out.mkdir()
    for running, other in ((Share(), Share(0, 2)), (Share(1, 2), Share()), (Share(1, 2), Share(1, 3))):
        with open_manifest(out, running), pytest.raises(ValueError, match="another job"):
            reconstruct(folder, out, task=Denoise(SIGMA), model=model, share=other)


@pytest.mark.parametrize("statuses", [("done", "failed"), ("failed", "done")])
def test_what_one_process_finished_no_failure_of_another_undoes(tmp_path, statuses):
    for rank, status in enumerate(statuses):
        (tmp_path / manifest_name(rank)).write_text(ItemResult("a.png", status, "a.png", "", {}, "").to_line())
    assert read_results(tmp_path)["a.png"].status == "done"


def test_a_share_outside_its_world_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"rank must be in 0 \.\. 1, got 2"):
        Share(2, 2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="set together"):
        Share.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ValueError, match="must be numbers"):
        Share.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Share.from_environment() == Share(1, 3, 0)


# ---- disks


def test_a_full_disk_stops_the_job_and_keeps_what_was_finished(tmp_path, model):
    """A real small file system where that may be mounted."""
    folder = numbered_images(tmp_path / "images", 60)
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "import os, sys; sys.argv[0] = 'lpn-fast'\n"
        f"from lpn_fast import cli; sys.exit(cli.main({job_arguments(folder, disk / 'out', tmp_path, model)!r}))"
    )
    mount = f'mount -t tmpfs -o size=64k,nr_inodes=1000 none {disk} && {sys.executable} -c "$CODE"'
    look = f"ls {disk}/out | grep -c 'npy$'; ls -A {disk}/out | grep -c tmp; cp -r {disk}/out {tmp_path}/kept"
    inside = f"{mount}; echo code $?; {look}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside], env=ENVIRONMENT | {"CODE": code}, capture_output=True, text=True
    )
    if "unshare" in done.stderr or "mount:" in done.stderr or "not found" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()[:80]}")
    exit_code, kept, temporary = re.search(r"code (\d+)\n(\d+)\n(\d+)", done.stdout).groups()
    assert (exit_code, temporary) == ("1", "0"), done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and "No space left" in done.stderr
    recorded = [r for r in read_results(tmp_path / "kept").values() if r.status == "done"]
    assert 0 < int(kept) == len(recorded) < 60


def job_arguments(folder, out, tmp_path, model):
    checkpoint = lf.save(model, tmp_path / "model.safetensors")
    options = ["--sigma", SIGMA, "--threads", 1, "--batch-pixels", 4 * SIDE * SIDE]
    return list(map(str, ["denoise", folder, "-o", out, "--model", checkpoint, *options]))


def test_a_manifest_that_cannot_grow_stops_the_job_without_a_torn_line(tmp_path, model):
    """Files may not grow beyond a limit of the process: results fit, the manifest soon does not."""
    folder = numbered_images(tmp_path / "images", 60)
    arguments = job_arguments(folder, tmp_path / "out", tmp_path, model)
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from lpn_fast import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"sys.exit(cli.main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
    assert (tmp_path / "out/manifest.jsonl").read_bytes().endswith(b"}\n")
    recorded = {r.item for r in read_results(tmp_path / "out").values()}
    assert recorded == {path.name for path in (tmp_path / "out").glob("*.npy")} and 0 < len(recorded) < 60
    assert not list((tmp_path / "out").glob(".*.tmp"))
    assert cli.main(arguments) == 0  # with room again, the same command does the rest
    assert_all_right(folder, tmp_path / "out", model)


def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(tmp_path, model, capsys, monkeypatch):
    folder = numbered_images(tmp_path / "images", 2)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "out"))

    arguments = job_arguments(folder, tmp_path / "out", tmp_path, model)
    monkeypatch.setattr("lpn_fast.atomic.open", refuse, raising=False)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Permission denied" in error
    assert [p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".lock"] == ["manifest.jsonl"]


# ---- threads


def test_reading_computing_and_writing_overlap(tmp_path, model, monkeypatch):
    """Each stage sleeps; while one image is solved, another is read, or another is written."""
    folder, pause, count = numbered_images(tmp_path / "images", 12), 0.05, 12
    times = {"read": [], "solve": [], "write": []}  # (start, end) of what each stage did

    def slowed(stage, function):
        def slow(*arguments, **options):
            started = time.monotonic()
            time.sleep(pause)
            result = function(*arguments, **options)
            times[stage].append((started, time.monotonic()))
            return result

        return slow

    class Slow(Denoise):
        solve = slowed("solve", Denoise.solve)

    def beside(stage):
        """How many images were solved while something of that stage went on."""
        return sum(any(a < end and start < b for a, b in times[stage]) for start, end in times["solve"])

    monkeypatch.setattr("lpn_fast.io.sources.formats.decode", slowed("read", lf.io.decode))
    monkeypatch.setattr("lpn_fast.pipeline.run.encode", slowed("write", lf.io.encode))
    summary = reconstruct(folder, tmp_path / "out", task=Slow(SIGMA), model=model, batch_pixels=SIDE * SIDE)
    assert len(summary.done) == len(times["read"]) == len(times["write"]) == count
    assert len(times["solve"]) == count + 1  # a blank image is tried first
    assert beside("read") >= 2 and beside("write") >= count // 2, times


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, checkpoint):
    """What a job of 160 images of 256 x 256 adds to the peak of one of 40; kept in memory they would be 42 MB."""
    array = np.random.default_rng(0).random((256, 256)).astype(np.float32)
    for count in (40, 160):
        (tmp_path / str(count)).mkdir()
        for number in range(count):
            np.save(tmp_path / str(count) / f"{number}.npy", array)
    code = (
        "import resource, torch; torch.set_num_threads(1)\n"
        "import lpn_fast as lf; from lpn_fast.pipeline import Denoise, reconstruct\n"
        "for count in (40, 160):\n"
        f"    folder, model = {str(tmp_path)!r} + f'/{{count}}', lf.load({str(checkpoint)!r})\n"
        "    reconstruct(folder, folder + '-out', task=Denoise(0.1), model=model)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    # one heap and early returns to the system: else glibc's heap per thread adds fragments of several MB, not images
    plain = ENVIRONMENT | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    few, many = (int(line) / 1024 for line in done.stdout.split())
    assert many - few < 5, f"peak MB: {few:.0f}, then {many:.0f}"


@pytest.mark.parametrize("disable", [False, True])
def test_the_clock_of_a_bar_goes_on_by_itself_until_the_end(disable):
    refreshed = []
    bar = SimpleNamespace(disable=disable, refresh=lambda: refreshed.append(1))
    before = threading.active_count()
    with ticking(bar, seconds=0.001):
        deadline = time.monotonic() + 5
        while len(refreshed) < 3 and not disable and time.monotonic() < deadline:
            time.sleep(0.001)
    assert (len(refreshed) >= 3) != disable and threading.active_count() == before


def test_stages_stay_in_order_and_within_bounds():
    running, most, lock = 0, 0, threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number

    assert list(in_order(work, range(30), workers=3, ahead=5)) == list(range(30))
    assert most <= 3
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    stream = ahead_of_time(items(), ahead=2)
    assert next(stream) == 0
    time.sleep(0.1)
    assert len(taken) <= 4  # one handed out, two waiting, one in hand
    stream.close()
    assert len(taken) < 100


def test_reading_ahead_is_bounded_by_what_the_results_weigh():
    begun, lock = [], threading.Lock()

    def work(number):
        with lock:
            begun.append(number)
        return number

    for most, early in ((3, 3), (1, 1), (0.5, 1)):  # one at a time whatever it weighs
        begun.clear()
        stream = in_order(work, range(30), workers=2, ahead=20, weight=lambda number: 1, most=most)
        for number in range(30):
            assert next(stream) == number
            time.sleep(0.005)
            assert len(begun) - number - 1 <= early
        assert next(stream, None) is None


def test_what_is_read_ahead_is_bounded_in_bytes():
    """Results of size 10 with room for 25 and two workers: at most two wait, two are in work, one was handed out."""
    alive, most, lock = 0, 0, threading.Lock()

    def read(number):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return number

    seen = []
    for number in in_order(read, range(40), workers=2, ahead=30, weight=lambda number: 10, most=25):
        time.sleep(0.002)
        seen.append(number)
        with lock:
            alive -= 1
    assert seen == list(range(40)) and most <= 5
    assert list(in_order(read, range(3), workers=2, ahead=2, weight=lambda number: 10**9, most=1)) == [0, 1, 2]


@pytest.mark.parametrize("shape", [(70, 45), (64, 64)])
def test_large_images_are_evaluated_in_tiles_with_the_same_result_and_progress(tmp_path, monkeypatch, shape):
    model = lf.pretrained("frame-gray")
    images = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    whole = Denoise(0.1).solve(images, model)
    monkeypatch.setattr("lpn_fast.pipeline.tasks.MOST_AT_ONCE", 1000)
    monkeypatch.setattr("lpn_fast.pipeline.tasks.TILE_SIDE", 32)
    shares = []
    tiled = Denoise(0.1).solve(images, model, on_iteration=shares.append)
    assert torch.allclose(tiled.x, whole.x, atol=1e-5)
    assert torch.allclose(tiled.objective, whole.objective, rtol=1e-4)
    assert len(shares) > 4 and shares == sorted(shares) and shares[-1] == 1 and shares[0] < 0.3
    mixture = lf.pretrained("fast-gray")
    assert torch.allclose(Denoise(0.1).solve(images, mixture).x, mixture(images, sigma=0.1), atol=1e-5)
    explicit = lf.pretrained("natural-gray")  # no network for tiles, since its prox is a solve
    assert torch.allclose(Denoise(0.1).solve(images, explicit).x, explicit(images, sigma=0.1), atol=1e-4)


def test_errors_of_a_stage_surface_after_what_came_before():
    def items():
        yield 1
        raise OSError("disk gone")

    seen = []
    with pytest.raises(OSError, match="disk gone"):
        for item in ahead_of_time(items()):
            seen.append(item)
    assert seen == [1]
    done = []
    with pytest.raises(OSError, match="full"), Background() as background:
        background.submit(done.append, 1)
        background.submit(fail)
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.submit(done.append, 2)
        raise KeyboardInterrupt
    assert done == [1, 2]


def fail():
    raise OSError("full")


def test_solvers_have_a_thread_each_and_the_caller_gets_its_own_back(threads):
    seen, both = [], threading.Barrier(2)

    def look():
        both.wait(timeout=10)  # two at once, or this breaks
        seen.append((torch.get_num_threads(), threading.current_thread()))

    with Solvers(2) as team:
        for _ in range(4):
            team.submit(look)
        team.alone(lambda: seen.append((torch.get_num_threads(), threading.current_thread())))
        assert seen[4:] == [(2, threading.main_thread())]  # after all others
        team.submit(seen.append, (torch.get_num_threads(), None))
    assert [count for count, _ in seen] == [1, 1, 1, 1, 2, 1]
    assert len({thread for _, thread in seen[:4]}) == 2
    assert torch.get_num_threads() == 2


def test_an_error_of_one_solver_stops_the_others_and_surfaces(threads):
    stopped, begun = [], threading.Event()

    def long(team):
        begun.set()
        stopped.append(team.stopped.wait(timeout=10))

    with pytest.raises(OSError, match="full"), Solvers(2) as team:
        team.submit(long, team)
        for _ in range(9):
            team.submit(fail)
    begun.clear()
    assert stopped == [True] and torch.get_num_threads() == 2
    with pytest.raises(KeyboardInterrupt), Solvers(2) as team:
        team.submit(long, team)
        assert begun.wait(timeout=10)
        raise KeyboardInterrupt
    assert stopped == [True, True] and torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "task",
    [
        Denoise(0.1),
        Reconstruct(problems.blur(lf.physics.Blur.gaussian(1.0)), noise=0.03, solver="pgd", iterations=4),
    ],
)
def test_results_do_not_depend_on_the_number_of_solvers(tmp_path, model, threads, task):
    """Images of several sizes, one larger than a batch, one unreadable, one that breaks the solver."""
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(16):
        height, width = (40, 40) if number == 7 else (20 + number % 3, 24)
        np.save(folder / f"{number:02d}.npy", generator.random((height, width)).astype(np.float32))
    (folder / "05.npy").write_bytes(b"no array")

    class Breaking(type(task)):
        def solve(self, y, model, *rest, **options):
            if y.shape[-2] == 21 and (y[:, 0, 0, 0] == poison).any():
                raise RuntimeError("broken on purpose")
            return super().solve(y, model, *rest, **options)

    poison = float(np.load(folder / "10.npy")[0, 0])
    breaking, found = Breaking(**vars(task)), {}
    for solvers in (1, 2, 3):
        out = tmp_path / f"out{solvers}"
        summary = reconstruct(folder, out, task=breaking, model=model, solvers=solvers, batch_pixels=2 * 24 * 22)
        assert len(summary.done) == 14 and sorted(f.item for f in summary.failed) == ["05.npy", "10.npy"]
        files = {path.name: path.read_bytes() for path in out.glob("*.npy")}
        lines = {item: replace(line, seconds=None) for item, line in read_results(out).items()}
        found[solvers] = files, lines
        assert len(files) == 14 and len(lines) == 16
        assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    assert found[1] == found[2] == found[3]
    assert torch.get_num_threads() == 2


def test_solvers_are_for_many_images_on_a_cpu(tmp_path, model, threads):
    assert [batches.solvers_for(model, images, 64) for images in (1, 7, 8, 1000)] == [1, 1, 2, 2]
    assert batches.solvers_for(model, 1000, 2**60) == 1  # no memory for two
    torch.set_num_threads(1)
    assert batches.solvers_for(model, 1000, 64) == 1
    with pytest.raises(ValueError, match="solvers must be at least 1, got 0"):
        reconstruct(numbered_images(tmp_path / "a", 1), tmp_path / "out", task=Denoise(0.1), model=model, solvers=0)


@pytest.fixture
def threads():
    """Two of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_lost_device_ends_the_job_instead_of_failing_every_image(tmp_path, model, monkeypatch):
    folder = numbered_images(tmp_path / "images", 5)

    def lost(self):
        raise RuntimeError("cuda:0 does not answer any more; finished images are kept: gone")

    def break_down(self, y, model, *rest, **options):
        raise RuntimeError("device-side error")

    monkeypatch.setattr("lpn_fast.pipeline.flow.Transfer.check_alive", lost)
    monkeypatch.setattr(Denoise, "conditions", lambda *_: None)
    monkeypatch.setattr(Denoise, "solve", break_down)
    with pytest.raises(RuntimeError, match="does not answer"):
        reconstruct(folder, tmp_path / "out", task=Denoise(SIGMA), model=model)
    assert read_results(tmp_path / "out") == {}
