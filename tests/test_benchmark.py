"""`lpn-fast bench`: every work of small models on the CPU, checked, kept and compared."""

import json
from dataclasses import replace

import pytest
import torch
from tables import rows_of

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.benchmark import ceilings, power, results, suite, timing, works


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(ceilings, "GEMM_SIZE", {"cpu": 64})
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(timing, "MIN_SECONDS", 1e-4)


MODELS = {
    "frame": (lambda: lf.FrameLPN(1, kernel=3, gates=((1, 1, 5),)), set(suite.OPS) - {"gradient of R"}),
    "mixture": (lambda: lf.MixtureLPN(1, kernel=3, experts=5), set(suite.OPS) - {"gradient of R"}),
    "vectors": (lambda: lf.MLPLPN(3, hidden=8, layers=2, alpha=0.1), {"prox", "value", "hvp", "step", "invert"}),
    "explicit": (
        lambda: lf.ExplicitLPN(1, kernel=3, groups=4),
        {"prox", "value", "gradient of R", "hvp", "reconstruct"},
    ),
}


def measured(name, **options):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    chosen = suite.Options(**{"batches": (2,), "sizes": ((9,),), "compiled": False, "seconds": 0.001} | options)
    return suite.run({name: model}, chosen, lambda row: None)


@pytest.mark.parametrize("name", MODELS)
def test_every_work_is_right_and_has_its_figures(name):
    result = measured(name)
    assert {row.work for row in result.rows} == MODELS[name][1], result.skipped
    ways = {"torch", "eager"} if name != "explicit" else {"torch"}
    for op in MODELS[name][1]:
        rows = [row for row in result.rows if row.work == op]
        assert ways <= {row.way for row in rows}, result.skipped
        for row in rows:
            assert row.error < 1e-4 and 0 < row.ms_20 <= row.ms <= row.ms_80 and row.rounds >= 3
            assert row.samples_per_s == pytest.approx(2e3 / row.ms)
            if op != "invert" or row.way != "eager":
                assert row.tflops > 0 and row.gbytes_per_s > 0 and row.ceiling > 0
            assert row.watts is None  # of a CPU nothing says them
    assert any("cuda" in line for line in result.skipped) or name == "explicit"


def test_a_wrong_way_has_no_time_and_a_broken_one_its_reason(monkeypatch):
    def wrong(name, setup, **how):
        return works.Provider(name, "torch", "float32", lambda: None, lambda _: torch.zeros(1, *setup.shape[1:]))

    monkeypatch.setattr(works, "plain", wrong)
    result = measured("frame", ops=("prox",))
    assert "eager" not in {row.way for row in result.rows} and result.rows
    assert any("frame prox, eager: its result is off by 1e+00" in line for line in result.skipped)

    def broken(*_, **how):
        raise RuntimeError("the compiler stopped\nat line 3")

    monkeypatch.setattr(works, "plain", broken)
    assert "frame prox, eager: RuntimeError: the compiler stopped" in measured("frame", ops=("prox",)).skipped


def test_the_command_keeps_what_it_prints_and_compares_two_of_them(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    torch.manual_seed(0)
    path = str(lf.save(MODELS["frame"][0](), tmp_path / "m.safetensors"))
    out = tmp_path / "a"
    common = ["bench", "--model", path, "--batch", "1", "2", "--size", "6", "7x5", "--seconds", "0.001", "--no-compile"]
    assert cli.main([*common, "--work", "prox", "training-step", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "measured ceilings" in printed and "training step" in printed and "compile: compilation is off" in printed
    rows = rows_of(out / "bench.csv")
    assert {row["shape"] for row in rows} == {"1x1x6x6", "2x1x6x6", "1x1x7x5", "2x1x7x5"}
    assert all(row["commit"] and row["torch"] == torch.__version__ for row in rows)
    assert (out / "roofline.png").read_bytes().startswith(b"\x89PNG")
    first = results.read(out)
    assert len(first.rows) == len(rows) and json.loads((out / "bench.json").read_text())["rows"][0]["way"]

    second = replace(first, rows=[replace(r, ms=r.ms / 2, ms_20=r.ms_20 / 50, ms_80=r.ms_80 / 50) for r in first.rows])
    results.write(second, tmp_path / "b")
    assert all(row[-1] == "level" for row in results.compare(first, first))
    assert all(row[-1] == "faster" and row[-2] == pytest.approx(2.0) for row in results.compare(first, second))
    assert all(row[-1] == "slower" for row in results.compare(second, first))
    assert cli.main(["bench", "--compare", str(out), str(tmp_path / "b")]) == 0
    assert "times faster" in capsys.readouterr().out


def test_what_cannot_be_compared_or_measured_is_named(tmp_path, capsys):
    (tmp_path / "bench.json").write_text("{}")
    for arguments, said in (
        (["--compare", str(tmp_path), str(tmp_path)], "must name results of lpn-fast bench --out"),
        (["--batch", "0"], "--batch: must be a positive whole number"),
        (["--seconds", "0"], "--seconds: must be a positive number"),
        (["--model", "nothing"], "--model must be a shipped model"),
    ):
        assert cli.main(["bench", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["bench", "--size", "12x"]) == 2
    assert "must be positive numbers like 128 or 128x96, got '12x'" in capsys.readouterr().err


def test_a_roofline_knows_special_functions_and_precisions():
    from lpn_fast.benchmark.counters import Work

    limits = ceilings.Ceilings(100.0, 10.0, 1.0, {"fp16": 1000.0})
    assert (
        limits.best_seconds(Work(10**11, 0, 0, 0)) == 1.0 and limits.best_seconds(Work(10**12, 0, 0, 0), "fp16") == 1.0
    )
    assert limits.best_seconds(Work(0, 0, 0, 2 * 10**9)) == 2.0
    found = ceilings.measure(0.01, special=True)
    assert found.gemm_gflops > 0 and found.copy_gbytes > 0 and found.special_g > 0


def test_watts_are_the_mean_of_readings_while_something_runs():
    readings = iter([1.0] + [5.0] * 1000)
    assert power.mean_watts(lambda: next(readings), lambda: __import__("time").sleep(0.1)) == 5.0
    assert power.reader(torch.device("cpu")) is None
