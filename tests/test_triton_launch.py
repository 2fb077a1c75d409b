"""Choices of the Triton backend that need neither Triton nor a GPU: tiles, table, dispatch."""

import math

import pytest
import torch

import lpn_fast as lf
from lpn_fast.kernels.triton import choices, launch
from lpn_fast.kernels.triton.launch import Key


@pytest.mark.parametrize("shape", [(64, 16, 16), (1, 1, 1), (64, 7, 7), (3, 14, 14), (2, 5, 301), (1, 128, 128)])
@pytest.mark.parametrize("pixels", [16, 64, 128])
def test_a_tile_shape_holds_its_pixels_in_powers_of_two(pixels, shape):
    box = launch.tile_shape(pixels, *shape)
    assert math.prod(box) == pixels
    assert all(side & (side - 1) == 0 for side in box)


def test_tile_shapes_waste_little_on_the_published_networks():
    for shape, least in (((64, 128, 128), 1.0), ((64, 16, 16), 1.0), ((64, 14, 14), 0.76), ((64, 7, 7), 0.76)):
        box = launch.tile_shape(128, *shape)
        covered = math.prod(-(-n // b) * b for n, b in zip(shape, box, strict=True))
        assert math.prod(shape) / covered >= least, (shape, box)


def test_a_tile_holds_several_images_only_where_they_are_smaller_than_it():
    assert launch.tile_shape(128, 64, 513, 513)[0] == 1  # boxes of 64 images cover it best, with offsets beyond int32
    assert launch.tile_shape(128, 64, 14, 14)[0] == 1
    assert launch.tile_shape(128, 64, 7, 7)[0] > 1
    assert launch.tile_shape(128, 64, 513, 513, tma=True) == (1, 1, 128)


def test_the_copy_engine_fetches_rows_where_few_pixels_of_them_are_wasted():
    assert launch.rows_fill(128, 128) and launch.rows_fill(128, 384) and launch.rows_fill(128, 100)
    assert not launch.rows_fill(128, 64) and not launch.rows_fill(128, 130)


def test_the_table_holds_shapes_that_a_launch_can_have():
    assert launch.table()
    for key, config in launch.table().items():
        assert key.precision in launch.STORAGE_BYTES and key.arch in launch.SHARED_BYTES
        for side in (config.pixels, config.channels, config.depth, config.columns):
            assert side >= launch.MIN_SIDE and side & (side - 1) == 0
        assert config.warps in (4, 8) and not (config.tma and key.arch < 90)


def test_bf16_takes_the_row_of_fp16_and_few_pixels_a_small_tile():
    key = Key("forward_1", 256, 256, "bf16", 90)
    assert launch.config(key) == launch.table()[Key("forward_1", 256, 256, "fp16", 90)]
    assert launch.config(key, pixels=20).pixels == 32
    assert not launch.config(key, forbid_tma=True).tma


def test_the_copy_engine_is_for_whole_blocks_of_channels_and_even_sizes_at_stride_two():
    assert launch.tma_fits(256, 64, 2, 2, 14, 28)
    assert not launch.tma_fits(256, 64, 2, 2, 7, 28)
    assert launch.tma_fits(256, 64, 2, 1, 7, 7)
    assert not launch.tma_fits(6, 16, 2, 1, 8, 8)


def test_a_sum_is_split_into_few_parts_that_depend_on_shapes_only():
    assert launch.splits(18, 4096, 132) == 15
    assert launch.splits(1000, 4096, 132) == 1
    assert launch.splits(1, 3, 132) == 1


def test_the_library_is_taken_only_where_it_was_measured_faster_and_loses_nothing(monkeypatch):
    key = Key("forward_2", 64, 64, "tf32", 90)
    row = {"device": "D", "role": "forward_2", "c_in": "64", "c_out": "64", "precision": "tf32", "pixels": "1000"}
    row |= {"ours_us": "30", "library_us": "20"}
    monkeypatch.setattr(choices, "rows", lambda: (row,))
    assert choices.choice("D", key, 1500) == (True, "the library was measured at 1.50 times our speed on D")
    assert choices.choice("D", key, 5000) == (False, "not measured on D for 5000 pixels")
    assert choices.choice("E", key, 1000) == (False, "not measured on E")
    row["library_us"] = "29.5"
    assert not choices.choice("D", key, 1000)[0]
    for role, precision, allowed in (("forward_1", "fp16", False), ("transposed_1", "fp16", False),
                                     ("forward_1", "bf16", False), ("transposed_1", "bf16", True),
                                     ("forward_1", "fp32", True)):  # fmt: skip
        assert (choices.loses_digits(role, precision) is None) == allowed


def test_the_table_of_choices_can_be_read():
    assert all(float(row["library_us"]) > 0 for row in choices.rows())


def test_cpu_tensors_are_refused_with_the_reason(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model, x = lf.ConvLPN(1, hidden=3), torch.zeros(1, 1, 8, 8)
    with lf.use_backend("triton"), pytest.raises(RuntimeError, match="runs on CUDA"):
        model(x)
