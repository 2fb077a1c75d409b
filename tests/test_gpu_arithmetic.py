"""Expected times of GPU kernels: counts against counts by hand, and no way faster than the roofline."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import lpn_fast as lf
from bench.gpu import arithmetic

SPEC = lf.pretrained("fast-gray").spec  # 49 coefficients of 7 x 7, 128 experts
SHAPE = (64, 1, 512, 512)
POSITIONS, PIXELS = 64 * 518 * 518, 64 * 512 * 512


def moved(way):
    return sum(kernel.bytes for kernel in arithmetic.ways(SPEC, SHAPE, "fp16", 90)[way])


def test_bytes_are_those_counted_by_hand():
    assert moved("eager") / POSITIONS == pytest.approx(4 * (14 * 49 + 16 * 128), rel=0.02)  # and a few images
    assert moved("compile") / POSITIONS == pytest.approx(4 * (9 * 49 + 4 * 128), rel=0.01)
    sums = 4 * 7 * 518 / 512  # sums of rows, per pixel
    assert moved("triton") / PIXELS == pytest.approx(3 * 4 + 2 * sums)


def test_operations_are_those_of_the_network_padded():
    kernels = arithmetic.ways(SPEC, SHAPE, "tf32", 90)
    own = POSITIONS * 4 * (49 * 49 + 49 * 128)
    assert sum(k.flop for k in kernels["compile"]) == own
    blocks = 64 * 518 * -(-512 // 122)  # 122 pixels per block of 128 positions
    assert sum(k.flop for k in kernels["triton"]) == blocks * 128 * 4 * (64 * 64 + 64 * 128)


def test_no_way_is_faster_than_the_roofline_and_every_model_has_its_rows():
    rows = arithmetic.table(64, (512, 512))
    assert all(0 < row.fraction <= 1.0 + 1e-9 for row in rows)
    known = {name for row in rows for name in row.model.split(", ")}
    assert known == set(lf.list_pretrained()) - {"denoise-gray"}, "contexts have no kernels"
    assert {row.precision for row in rows} == set(arithmetic.PRECISIONS)
    assert len({row.device for row in rows}) == 3
    by_model = {(row.model, row.device, row.precision): set() for row in rows}
    for row in rows:
        by_model[row.model, row.device, row.precision].add(row.way)
    assert all(ways == {"eager", "compile", "torch", "triton"} for ways in by_model.values())


def test_a_published_networks_bytes_are_those_counted_by_hand_and_small_images_wait_for_launches():
    spec, shape = lf.pretrained("mnist").spec, (64, 1, 28, 28)
    units = 64 * sum(s.width * h * w for s, (h, w) in zip(spec.stages, spec.stage_sizes(28, 28), strict=True))
    found = arithmetic.ways(spec, shape, "tf32", 90)
    moved = {way: sum(kernel.bytes for kernel in kernels) / (4 * units) for way, kernels in found.items()}
    assert moved == pytest.approx({"eager": 16, "compile": 13, "torch": 22, "triton": 5}, rel=0.12)  # weights, images
    device, stages = arithmetic.DEVICES[0], len(spec.stages)
    microseconds = {way: 1e6 * sum(kernel.seconds(device) for kernel in kernels) for way, kernels in found.items()}
    assert microseconds["eager"] == pytest.approx(8 * stages * arithmetic.LAUNCH_US)


def test_an_explicit_priors_bytes_are_those_counted_by_hand_and_its_torch_backend_waits_for_launches():
    spec = lf.ExplicitLPN(1, kernel=7, groups=64).spec  # 49 coefficients
    found = arithmetic.ways(spec, SHAPE, "fp32", 90)
    moved = {way: sum(k.count * k.bytes for k in kernels) for way, kernels in found.items()}
    assert moved["eager"] / POSITIONS == pytest.approx(4 * (11 * 49 + 17 * 64), rel=0.01)
    assert moved["torch"] == pytest.approx(moved["eager"], rel=0.02)
    sums = 4 * 7 * 518 / 512 * 524 / 512  # of rows, margins included, per pixel
    assert moved["triton"] / PIXELS == pytest.approx(4 * 4 + 2 * sums)
    assert {k.count for k in found["torch"]} == {64 * -(-518 // 7)}


def test_free_filters_are_multiplied_by_all_taps_of_their_patches():
    spec = lf.ExplicitLPN(1, kernel=13, groups=96, filters=80).spec
    found = arithmetic.ways(spec, SHAPE, "fp32", 90)
    assert sum(k.flop for k in found["compile"]) == 64 * 524 * 524 * 4 * 80 * (169 + 96)
    blocks = 64 * 524 * -(-536 // 20)  # 20 pixels per block of 32 positions, margins included
    taps = 256  # 13 rows of 16, in blocks of 64
    assert sum(k.flop for k in found["triton"]) == blocks * 32 * 2 * 128 * 3 * (2 * taps + 2 * 96)


def test_a_gradients_bytes_are_those_counted_by_hand_and_every_frame_has_its_rows():
    kernels = arithmetic.gradient_ways(SPEC, SHAPE, "fp16", 90)
    sums = 4 * 7 * 518 / 512  # of rows, per pixel, twice: of f and of H v
    images = 3 + 4 + 4 + 2 + 2  # of f; of H v, x and v, folded; padded; of the gates; of the filters
    moved = sum(kernel.bytes for kernel in kernels["triton"]) / PIXELS - 4 * images - 4 * sums
    assert moved * PIXELS / POSITIONS == pytest.approx(2 * (2 * 2 * 49 + 12))  # e and delta, the soft maximum
    rows = arithmetic.table(64, (512, 512), "gradient")
    assert all(0 < row.fraction <= 1.0 + 1e-9 for row in rows)
    assert {row.model for row in rows} == {row.model for row in arithmetic.table(64, (512, 512))} - {"mnist"}


def test_the_command_prints_a_table(capsys):
    assert arithmetic.main(["--batch", "1", "--size", "64", "64", "--markdown"]) == 0
    assert "frame-gray, synthetic-gray | H200 | fp16 | triton |" in capsys.readouterr().out
