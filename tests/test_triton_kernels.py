"""The Triton kernels without a GPU: under the interpreter against float64, and through the compiler for GPUs.

Triton reads TRITON_INTERPRET once, when it is imported, so what runs under the interpreter (interpreted/) has a
process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from lpn_fast.kernels.triton import ahead, hazards, launch
from lpn_fast.kernels.triton.launch import Key, rule

HERE = Path(__file__).parent
# of frames those alone that hold most, since whole ones go stage by stage where they are wide and in float32 only
GATED = (
    [
        row
        for row in ahead.launches(90)
        if row[3] is ahead.PUBLISHED or row[0].role in ("gradient_image", "project", "adjoint_1")
    ]
    + [
        (key, rule(key), projects, ahead.PUBLISHED)
        for key in (
            Key("forward_1", 64, 64, "fp16", 90),
            Key("transposed_2", 64, 64, "bf16", 90),
            Key("transposed_1", 64, 64, "fp32", 90),
            Key("adjoint_2", 64, 64, "fp16", 90),
            Key("gradient_1", 64, 64, "tf32", 90),
            Key("image", 0, 256, "fp16", 90),
            Key("project", 256, 27, "fp16", 90),
            Key("gradient_image", 27, 64, "fp16", 90),
            Key("forward_2", 64, 64, "fp16", 80),
            Key("transposed_1", 64, 64, "fp32", 80),
            Key("gradient_image", 27, 64, "fp16", 100),
        )
        # the step of the first stage, that of the transposed sweeps' last kernel, projects in the published networks
        for projects in ((False, True) if key.role.startswith(("transposed", "adjoint")) else (False,))
    ]
    + [
        (
            key,
            rule(key),
            key.role != "gradient_1",
            ahead.FRAMES[49, 96],
        )  # those that had the most to hold on such devices
        for key in (
            Key("transposed_1", 96, 49, "fp32", 86),
            Key("adjoint_1", 96, 49, "fp32", 86),
            Key("gradient_1", 49, 96, "fp32", 86),
            Key("gradient_1", 49, 96, "tf32", 90),
        )
    ]
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triton_kernels.py", "triton_frame.py", "triton_mirrored.py", "triton_explicit.py"])
def test_every_kernel_under_the_interpreter_agrees_with_float64(name):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [str(HERE / "interpreted" / name), "--rootdir", str(HERE.parent)]
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter")
@pytest.mark.parametrize(
    "key, config, projects, form",
    GATED,
    ids=lambda v: "-".join(map(str, vars(v).values())) if hasattr(v, "__dict__") else "projects" * v,
)
def test_a_launch_compiles_without_spills_into_tensor_core_code(key, config, projects, form):
    found = ahead.report(key, config, projects, form)
    assert found.spilled_bytes == 0
    assert not found.hazards
    assert found.shared_bytes <= launch.SHARED_BYTES[key.arch]
    assert found.tensor_core > 0
    assert (found.tma_loads > 0) == config.tma


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize("atoms, channels, gates, competing", ahead.WHOLE_FRAMES)
def test_the_kernel_of_a_whole_frame_compiles_without_spills(atoms, channels, gates, competing, precision, arch):
    for what in ("prox", "value", "hvp") if precision == "fp32" else ("value", "hvp"):
        found = ahead.frame_report(arch, precision, atoms, channels, gates, competing, what)
        assert found.spilled_bytes == 0
        assert not found.hazards
        assert found.shared_bytes <= launch.SHARED_BYTES[86]  # as the smaller devices of the same generation have
        assert found.tensor_core > 0


def gate(found, arch):
    assert found.spilled_bytes == 0
    assert not found.hazards
    assert found.shared_bytes <= launch.SHARED_BYTES[arch]
    assert found.tensor_core > 0


# sm_80 and sm_90 above; those that hold most in registers, and what is fastest
OTHERS = (
    "mixture 5x5x3 fp32 hvp",
    "frame 7x7x1 fp32 hvp",
    "mixture 7x7x1 fp16 value",
    "explicit 7x7x1 fp32 hvp",
    "explicit 13x13x1 fp32 value",
    "explicit 13x13x1 fp32 factors",
    "mirrored mixture 7x7x1 tf32 scale",
)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter")
@pytest.mark.parametrize("arch", [86, 89, 100])
@pytest.mark.parametrize("name", OTHERS)
def test_the_kernel_of_a_whole_frame_compiles_without_spills_for_other_devices(name, arch):
    gate(ahead.fused_kernels(arch)[name](), arch)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("shape", ahead.EXPLICIT_PRIORS)
@pytest.mark.parametrize("what", ["value", "hvp"])
def test_the_kernels_of_an_explicit_prior_compile_without_spills(shape, what, arch):
    k, channels, *_ = shape
    gate(ahead.fused_kernels(arch)[f"explicit {k}x{k}x{channels} fp32 {what}"](), arch)


# those of gradients of the weights that came closest to a spill; the battery of a device compiles all of them
OF_WEIGHTS = (
    "explicit 13x13x1 fp32 factors",
    "explicit 13x13x1 fp32 v",
    "explicit 7x7x1 fp32 factors",
    "explicit 5x5x3 fp32 v",
    "mixture 7x7x1 fp32 vjp",
    "mixture 7x7x1 fp32 v",
    "mixture 5x5x3 tf32 vjp",
)


# of mirrored borders those that hold most, and the one that spilled with the tile of the same frame with zeros around
MIRRORED = (
    "mirrored mixture 7x7x1 fp32 hvp",
    "mirrored frame 7x7x1 tf32 hvp",
    "mirrored mixture 5x5x3 fp16 value",
    "mirrored mixture 7x7x1 fp32 vjp",
    "mirrored frame 7x7x1 fp32 v",
)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", OF_WEIGHTS + MIRRORED)
def test_the_kernels_of_gradients_of_the_weights_and_of_mirrored_borders_compile_without_spills(name, arch):
    gate(ahead.fused_kernels(arch)[name](), arch)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter")
def test_the_hazard_of_a_product_that_reads_registers_is_found_where_the_compiler_leaves_it(monkeypatch):
    """A box of several rows goes through registers, and the next iteration of Triton 3.6 overwrites them."""
    key = Key("forward_1", 256, 256, "fp16", 90)
    monkeypatch.setattr(ahead, "tile_shape", lambda pixels, *_: (1, 8, pixels // 8))
    assert ahead.report(key, launch.config(key)).hazards


def sass(*lines):
    return "\n".join(f"--:-:-:-:1\t{line}" for line in lines)


PRODUCT = "HGMMA.64x128x16.F32 R24, R96, gdesc[UR8].tnspB, R24, gsb0;"
LOOP = ("LDSM.16.M88.4 R96, [R2+UR9];", PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x{};", "@P0 BRA LBB2;")


def test_a_register_may_be_written_again_only_behind_a_wait_that_covers_its_product():
    covered, late = (("LBB2:", *(line.format(pending) for line in LOOP)) for pending in (0, 1))
    assert hazards.register_hazards(sass(*covered)) == []
    assert hazards.register_hazards(sass(*late)) == ["LDSM.16.M88.4 R96, [R2+UR9];"]
    straight = hazards.register_hazards(sass(PRODUCT, "@!P1 LDS.64 R98, [R7];", "ISETP.LT.AND P0, PT, R97, 0x1, PT;"))
    assert straight == ["@!P1 LDS.64 R98, [R7];"]  # the comparison reads R97
    in_memory = PRODUCT.replace("R96", "gdesc[UR4]")
    assert hazards.register_hazards(sass("LBB2:", LOOP[0], in_memory, *LOOP[2:])) == []
    unrelated = sass(PRODUCT, "MOV R95, R3;", "IMAD.WIDE R100, R4, R5, R6;", "STS [R97], R4;")
    assert hazards.register_hazards(unrelated) == []
    assert hazards.register_hazards(sass(PRODUCT, "IMAD.WIDE R98, R4, R5, R6;"))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the compiler is off under the interpreter")
@pytest.mark.parametrize("arch", [80, 90])
def test_the_kernels_around_the_products_compile_without_spills(arch):
    assert all(found.spilled_bytes == 0 for found in ahead.small_kernels(arch).values())
