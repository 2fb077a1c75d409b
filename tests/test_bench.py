"""The benchmark harness: its counters against known figures, its baselines against the package, its CSV."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tables import rows_of

import lpn_fast as lf
from bench import report
from bench.__main__ import main
from bench.rows import NETWORKS, OURS, ROWS, Row, Setup, provider, provider_names
from lpn_fast.benchmark import ceilings, counters, memory, timing
from lpn_fast.benchmark.surroundings import surroundings
from lpn_fast.benchmark.works import relative_error
from lpn_fast.ops import plain_torch as baselines

ROOT = Path(__file__).resolve().parents[1]
LPN128 = (1, 3, 128, 128)
SOFTPLUS_CUT = 1e-8  # torch's softplus is the identity above beta u = 20, off by up to e^-20 = 2e-9 there


def test_counters_give_the_known_figures_of_lpn_128():
    spec = lf.paper_network("celeba").spec
    assert counters.forward_macs(spec, 128, 128) / 1e9 == pytest.approx(6.381, abs=1e-3)
    assert counters.units(spec, 128, 128) / 1e6 == pytest.approx(6.88, abs=5e-3)
    prox, step = (counters.work(spec, op, LPN128, element_bytes=2) for op in ("prox", "step"))
    assert prox.flop / 1e9 == pytest.approx(25.52, abs=5e-3)
    assert step.flop / 1e9 == pytest.approx(76.57, abs=5e-3)
    assert prox.activation_bytes / 1e6 == pytest.approx(68.8, abs=0.1)
    assert step.activation_bytes / 1e6 == pytest.approx(234, abs=0.5)
    assert prox.special / counters.units(spec, 128, 128) == 3


def test_counters_give_the_known_figures_of_the_small_networks():
    spec = lf.paper_network("mnist").spec
    assert counters.forward_macs(spec, 28, 28) / 1e6 == pytest.approx(17.2, abs=0.05)
    assert counters.work(spec, "prox", (1, 1, 28, 28)).flop / 1e9 == pytest.approx(0.07, abs=2e-3)
    assert counters.units(spec, 28, 28) / 1e3 == pytest.approx(78, abs=0.5)
    assert counters.padded_dense_flop(2, 64, 5) / 1e3 == pytest.approx(86, abs=0.1)
    assert counters.padded_dense_flop(64, 256, 5) / 1e6 == pytest.approx(1.38, abs=5e-3)
    dense = lf.MLPLPN(64, hidden=256, layers=4).spec
    assert counters.work(dense, "prox", (1, 64)).flop == counters.padded_dense_flop(64, 256, 5)


def test_work_is_proportional_to_the_batch_and_a_step_to_three_proxes():
    spec = lf.paper_network("mnist").spec
    one, four = (counters.work(spec, "prox", (n, 1, 28, 28)) for n in (1, 4))
    assert four.flop == 4 * one.flop and four.activation_bytes == 4 * one.activation_bytes
    assert counters.work(spec, "step", (4, 1, 28, 28)).flop == 3 * four.flop
    assert four.times(2.5).flop == 10 * one.flop
    step, gradient = (counters.work(spec, op, (4, 1, 28, 28)).other_bytes for op in ("step", "gradient"))
    assert step - gradient == 4 * 7 * sum(p.numel() for p in lf.paper_network("mnist").parameters())


def test_roofline_takes_the_slower_of_the_two_limits():
    limits = ceilings.Ceilings(gemm_gflops=100.0, copy_gbytes=10.0)
    assert limits.best_seconds(counters.Work(10**11, 0, 10**9, 0)) == 1.0
    assert limits.best_seconds(counters.Work(10**9, 10**10, 0, 0)) == 1.0


def test_quantiles_and_ratios_are_formed_per_round():
    s = timing.spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (s.p50, s.p20, s.p80) == pytest.approx((3.0, 1.8, 4.2))
    assert timing.ratios([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]).p50 == 2.0
    times = timing.interleaved({"a": lambda: None, "b": lambda: None}, rounds=4, seconds=10.0)
    assert [len(t) for t in times.values()] == [4, 4] and all(t > 0 for t in times["a"])


TINY = {
    "mlp": (lambda: lf.MLPLPN(3, hidden=8, layers=2), (5, 3)),
    "mnist": (lambda: lf.paper_network("mnist"), (2, 1, 28, 28)),
}


def assert_same(plain, model, x, tolerance):
    """f, H v and the gradients of a step."""
    v, target = torch.randn(2, *x.shape, dtype=x.dtype)
    assert relative_error(plain.prox(x), model(x).detach().double()) < tolerance
    assert relative_error(plain.hvp(x, v), model.hvp(x, v).detach().double()) < tolerance
    plain.loss_gradients(x, target)
    (model(x) - target).square().mean().backward()
    ours = torch.cat([p.grad.reshape(-1) for p in (model.get_parameter(s.name) for s in plain.potential.slots)])
    assert relative_error(plain.potential.gradients(), ours.double()) < tolerance


@pytest.mark.parametrize("network", TINY)
@pytest.mark.parametrize("channels_last", [False, True])
def test_baseline_a_computes_what_the_package_computes(network, channels_last):
    build, shape = TINY[network]
    if channels_last and len(shape) == 2:
        pytest.skip("channels-last is a layout of images")
    torch.manual_seed(1)
    model = build().double()
    plain = baselines.Eager(model, channels_last)
    x = torch.randn(shape, dtype=torch.float64)
    assert relative_error(plain.potential(x), model.potential(x).detach()) < SOFTPLUS_CUT
    assert_same(plain, model, x, SOFTPLUS_CUT)


@pytest.mark.slow
def test_baseline_c_computes_what_the_package_computes(monkeypatch):
    if reason := baselines.why_no_compiler():
        pytest.skip(reason)
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend="aot_eager", **options))
    torch.manual_seed(2)
    model = lf.MLPLPN(3, hidden=8, layers=2)
    assert_same(baselines.Compiled(model), model, torch.randn(5, 3), 1e-5)


def test_plain_inversion_finds_preimages():
    torch.manual_seed(3)
    model = lf.MLPLPN(1, hidden=20, layers=2, alpha=0.2)
    x = model(torch.randn(20, 1)).detach()
    y = baselines.invert(lambda t: model(t).detach(), x, tol=1e-5)
    assert (model(y) - x).norm() <= 2e-5 * x.norm()


@pytest.mark.parametrize("op", ["prox", "hvp", "step", "invert"])
def test_every_provider_meets_the_truth(op):
    row = Row("tiny", op, "mlp-strongly-convex" if op == "invert" else "mlp", 50, 1)
    setup = Setup(row)
    truth = setup.truth()
    for name in provider_names(row):
        if name != "C":
            p = provider(name, setup)
            assert relative_error(p.result(p.call()), truth) < 1e-4, name
    assert setup.work().flop > 0


def test_rows_hold_issue_3s_table_and_known_networks():
    goals = {row.name: row.goals for row in ROWS}
    assert goals["mlp prox 100000"] == {"A": 6, "C": 2.2} and goals["lpn128 step 4"] == {"A": 1.35, "C": 1.6}
    assert all(row.network in NETWORKS for row in ROWS) and len(goals) == len(ROWS)
    assert {"hvp", "invert", "prox", "step"} == {row.op for row in ROWS}


def test_compiled_baseline_is_skipped_with_a_reason_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "needs a C++ compiler" in baselines.why_no_compiler()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's")
def test_peak_memory_sees_what_is_freed_again():
    code = "import torch; from lpn_fast.benchmark.memory import peak_megabytes; "
    code += "print(peak_megabytes(lambda: (torch.ones(2**23) + 1).sum()))"
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(memory.MMAP_THRESHOLD)}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert 60 < float(child.stdout) < 80  # two arrays of 32 MB at once


def test_quick_run_of_the_mlp_rows_writes_a_valid_csv(tmp_path, capsys):
    threads, out = torch.get_num_threads(), tmp_path / "cpu.csv"
    try:
        code = main(["--quick", "--rows", "mlp (prox|step|hvp) (0|2000)$", "--rounds", "3", "--threads", "1",
                     "--no-memory", "--out", str(out)])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    rows = rows_of(out)
    assert tuple(rows[0]) == report.COLUMNS
    for op in ("prox", "step", "hvp"):
        times = {r["provider"]: r for r in rows if r["op"] == op and r["metric"] == "time"}
        assert set(times) == {*OURS, "A"}
        for r in times.values():
            assert 0 < float(r["p20"]) <= float(r["p50"]) <= float(r["p80"]) and r["unit"] == "ms"
            assert float(r["rel_err"]) < 1e-5 and float(r["roofline_fraction"]) > 0
            assert json.loads(r["config_json"])["rounds"] == 3 and int(r["threads"]) == 1
        assert any(r["provider"] == "A/ours" and float(r["p50"]) > 0 for r in rows if r["metric"] == "ratio")
        assert any(r["provider"] == "C" and "reason" in r["config_json"] for r in rows if r["metric"] == "skipped")
    assert any(r["metric"] == "overhead" for r in rows)
    table = capsys.readouterr().out
    assert "ceilings:" in table and "skipped: compilation is off" in table and "goal 4" in table


def test_rows_that_match_nothing_are_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["--rows", "nothing-like-this"])
    assert "must match a row" in capsys.readouterr().err


def test_no_figure_carries_a_path_or_a_host():
    where = json.dumps(surroundings(1))
    assert str(ROOT) not in where and socket.gethostname() not in where
