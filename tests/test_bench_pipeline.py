"""The benchmark of batch jobs, at a small size: what it writes down, and that its two ways do the same work."""

import pytest
from tables import rows_of

from bench import pipeline, report
from lpn_fast.benchmark.surroundings import surroundings


def test_overhead_compares_the_job_with_its_solver(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "SIDE", 32)
    arguments = ["overhead", "--images", "4", "--rounds", "1", "--seconds", "0", "--threads", "1"]
    assert pipeline.main([*arguments, "--output", str(tmp_path / "a.csv")]) == 0
    rows = rows_of(tmp_path / "a.csv")
    assert tuple(rows[0]) == report.COLUMNS
    assert [(r["op"], r["provider"]) for r in rows] == [
        (f"pipeline {task}", what)
        for task in pipeline.TASKS
        for what in ("job", pipeline.ONE_BY_ONE, pipeline.SIDE_BY_SIDE, pipeline.OVERHEAD)
    ]
    assert all(float(r["rel_err"]) <= 0.501 / 255 for r in rows)  # the rounding of 8 bits
    assert all(float(r["p50"]) > 0 for r in rows if r["metric"] == "time")
    assert capsys.readouterr().out.count("goal 10 %") == len(pipeline.TASKS)


def test_the_peak_is_that_of_a_job_of_all_images(tmp_path):
    folder = pipeline.photographs(tmp_path / "images", 3, 16)
    found = pipeline.peak(folder, threads=1)
    assert 0 < found["start"] <= found["peak"]
    assert len(list((tmp_path / "images-out").glob("*.png"))) == 3


def test_versions_are_compared_by_what_is_beside_the_network(capsys):
    seen = {
        "this": [{"job": 3.0, "network": 2.0}, {"job": 5.0, "network": 4.5}, {"job": 4.0, "network": 3.0}],
        "other": [{"job": 4.0, "network": 2.0}, {"job": 5.0, "network": 4.0}, {"job": 4.0, "network": 2.5}],
    }
    rows = {row.provider: row for row in pipeline._compared("denoise", seen, 10, surroundings(1))}
    assert rows["this, beside network"].p50 == pytest.approx(100) and rows["other, job"].p50 == pytest.approx(400)
    assert rows["other/this, beside"].p50 == pytest.approx(2) and "goal at least 1: met" in capsys.readouterr().out
