"""The model of a block on PTX written by hand: what it must see in compiled code, each alone."""

import numpy as np
import pytest
import torch
from ptx_memory import Fault, Memory
from ptx_model import launch

HEAD = """
.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .u32 kernel_param_1
)
{
	.reg .pred %p<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>;
	.shared .align 16 .b8 kept[512];
	ld.param.u64 %rd1, [kernel_param_0];
	ld.param.u32 %r1, [kernel_param_1];
	mov.u32 %r2, %tid.x;
	mul.wide.u32 %rd2, %r2, 4;
	add.s64 %rd3, %rd1, %rd2;
	shl.b32 %r3, %r2, 2;
	mov.u32 %r4, kept;
	add.s32 %r5, %r4, %r3;
"""


def run(code: str, warps: int = 2, number: int = 0, blocks: int = 1) -> list[int]:
    """What the threads leave in an array of as many words, which count up before."""
    words = torch.arange(32 * warps, dtype=torch.int32)
    launch(HEAD + code + "\nret;\n}\n", 0, warps, (blocks,), [words, number])
    return words.tolist()


def test_threads_take_their_own_ways_and_meet_again():
    """Each counts its number in steps of one, an odd one twice; then all pass one barrier."""
    code = """
	mov.u32 %r6, 0;
	mov.u32 %r7, 0;
$again:
	setp.ge.u32 %p1, %r6, %r2;
	@%p1 bra $done;
	add.s32 %r6, %r6, 1;
	and.b32 %r8, %r2, 1;
	setp.eq.s32 %p2, %r8, 0;
	@%p2 bra $even;
	add.s32 %r7, %r7, 1;
$even:
	add.s32 %r7, %r7, 1;
	bra.uni $again;
$done:
	bar.sync 0;
	st.global.u32 [%rd3], %r7;"""
    assert run(code) == [n * (1 + n % 2) for n in range(64)]


def exchanged(between: str) -> str:
    """Every thread reads what the one of the same lane in the other warp wrote."""
    return f"""
	st.shared.u32 [%r5], %r2;
	{between}
	xor.b32 %r6, %r3, 128;
	add.s32 %r6, %r4, %r6;
	ld.shared.u32 %r7, [%r6];
	st.global.u32 [%rd3], %r7;"""


def test_what_others_wrote_is_read_behind_a_barrier_for_both():
    assert run(exchanged("bar.sync 0;")) == [n ^ 32 for n in range(64)]
    assert run(exchanged("bar.sync 1, 64;")) == [n ^ 32 for n in range(64)]
    # a barrier of each warp's own, or of nobody
    for between in ("shr.u32 %r8, %r2, 5; add.s32 %r8, %r8, 1; bar.sync %r8, 32;", "bar.warp.sync -1;", ""):
        with pytest.raises(Fault, match="without a barrier"):
            run(exchanged(between))


def test_a_barrier_that_not_all_reach_is_a_fault():
    with pytest.raises(Fault, match="not all come"):
        run("setp.lt.u32 %p1, %r2, 32; @%p1 bra $past; bar.sync 0; $past:")
    with pytest.raises(Fault, match="more threads"):
        run("bar.sync 1, 32;")


def test_lanes_that_a_shuffle_waits_for_in_vain_are_a_fault():
    shuffle = "shfl.sync.bfly.b32 %r7, %r2, 1, 31, -1;"
    assert run(f"{shuffle} st.global.u32 [%rd3], %r7;") == [n ^ 1 for n in range(64)]
    with pytest.raises(Fault, match="never come"):
        run(f"setp.lt.u32 %p1, %r2, 7; @%p1 bra $past; {shuffle} $past:")
    # half of them come later
    late = f"setp.lt.u32 %p1, %r2, 7; @%p1 bra $on; mov.u32 %r8, 1; $on: {shuffle} st.global.u32 [%rd3], %r7;"
    assert run(late) == [n ^ 1 for n in range(64)]


def copied(wait: str) -> str:
    """Words brought by two groups of copies, of the upper and the lower half of the array; the thread's own is read."""
    return f"""
	cp.async.ca.shared.global [%r5], [%rd3], 4;
	cp.async.commit_group;
	add.s32 %r6, %r5, 256;
	cp.async.ca.shared.global [%r6], [%rd3], 4;
	cp.async.commit_group;
	{wait}
	ld.shared.u32 %r7, [%r5];
	add.s32 %r7, %r7, %r7;
	st.global.u32 [%rd3], %r7;"""


def test_copies_arrive_when_they_were_waited_for():
    for wait in ("cp.async.wait_group 1;", "cp.async.wait_group 0;", "cp.async.wait_all;"):
        assert run(copied(wait)) == [2 * n for n in range(64)]
    for wait in ("cp.async.wait_group 2;", ""):
        with pytest.raises(Fault, match="under way"):
            run(copied(wait))


def test_a_copy_that_one_warp_waited_for_has_not_arrived_for_the_other():
    code = copied("cp.async.wait_all; {}").replace("ld.shared.u32 %r7, [%r5]", "ld.shared.u32 %r7, [%r8]")
    other = "xor.b32 %r8, %r3, 128; add.s32 %r8, %r4, %r8;"
    assert run(code.replace("{}", "bar.sync 0; " + other)) == [2 * (n ^ 32) for n in range(64)]
    with pytest.raises(Fault, match="without a barrier"):
        run(code.replace("{}", other))


def test_blocks_know_nothing_of_each_other():
    code = "mov.u32 %r6, %ctaid.x; st.global.u32 [%rd3], %r6;"
    assert run(code) == [0] * 64
    with pytest.raises(Fault, match="another block"):
        run(code, blocks=2)
    with pytest.raises(Fault, match="another block"):
        run("ld.global.u32 %r6, [%rd3]; add.s32 %r6, %r6, 1; st.global.u32 [%rd3], %r6;", blocks=2)


def test_two_threads_at_one_place_agree_or_are_a_fault():
    assert run("st.global.u32 [%rd1], %r1;", number=7)[0] == 7
    with pytest.raises(Fault, match="different values"):
        run("st.global.u32 [%rd1], %r2;", warps=1)


@pytest.mark.parametrize(
    "what",
    [
        "ld.shared.u32 %r6, [%r5+512]",
        "ld.shared.u32 %r6, [%r4+-4]",
        "st.shared.u32 [%r5+2], %r6",
        "ld.global.u32 %r6, [%rd3+4]",
        "ld.global.u32 %r6, [%rd3+-4]",
        "ld.param.u32 %r6, [kernel_param_1+4]",
    ],
)
def test_what_is_out_of_bounds_or_off_its_alignment_is_a_fault(what):
    with pytest.raises(Fault, match="outside|alignment"):
        run(f"mov.u32 %r6, 0; {what};")


@pytest.mark.parametrize(
    "text",
    [
        "tanh.approx.f32 %r6, %r2",
        "add.sat.s32 %r6, %r2, %r2",
        "cvt.rz.f16x2.f32 %r6, %r2, %r2",
        "shfl.sync.up.b32 %r6, %r2, 1, 0, -1",
        "bar.red.popc.u32 %r6, 0, %p1",
        "brx.idx %r2, $x",
        "setp.lt.and.s32 %p1, %r2, %r2, %p2",
        "atom.global.add.u32 %r6, [%rd3], 1",
    ],
)
def test_what_is_not_known_is_no_result(text):
    with pytest.raises(Fault, match="not known here"):
        run("setp.eq.s32 %p1, %r2, %r2; " + text + "; $x:")


def test_memory_that_is_nobodys_is_seen():
    memory = Memory()
    base = memory.add(np.zeros(64, np.uint8))
    space, offsets = memory.at(np.array([base + 60]), "st")
    assert space.check(offsets, 4, "st").tolist() == [[60, 61, 62, 63]]
    for address, said in ((base + 64, "outside"), (base - 4, "outside"), (base + 2, "alignment")):
        with pytest.raises(Fault, match=said):
            space, offsets = memory.at(np.array([address]), "st")
            space.check(offsets, 4, "st")
