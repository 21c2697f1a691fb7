"""Reading PTX: where loads come from, how wide they are, and which stand in loops."""

from __future__ import annotations

import pytest

from soloist.kernels.errors import ArtifactError
from soloist.kernels.listing import Load, read_ptx

TEXT = """
.version 8.5
.target sm_87
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1,
	.param .u32 kernel_param_2
)
.reqntid 64
{
	.reg .pred 	%p<4>;
	.reg .b32 	%r<20>;
	.reg .b64 	%rd<10>;
	.loc	1 25 0                          // kernel.py:25:0
$L__func_begin0:
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	ld.param.b32 	%r1, [kernel_param_2];
	mul.wide.s32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd1, %rd3;            // the weights' address
	// begin inline asm
	mov.u32 %r2, 0x0;
	@%p1 ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd4 + 0 ];
	// end inline asm
	mov.b64 	%rd5, %rd2;
	cp.async.cg.shared.global [ %r6 + 0 ], [ %rd4 + 16 ], 0x10, %r7;
$L__BB0_1:
	ld.global.L1::evict_first.v2.b64 	{%rd8, %rd9}, [%rd5];
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 	{ %r8, %r9 }, { %r2, %r3 }, { %r4 }, { %r8, %r9 };
$L__BB0_2:
	ld.global.b16 	%r10, [%rd6];
	add.s64 	%rd6, %rd5, %rd4;
	@%p3 bra 	$L__BB0_2;
	add.s64 	%rd5, %rd5, 32;
	ld.global.b32 	%r11, [%rd9];
	@%p2 bra 	$L__BB0_1;
	st.global.b32 	[%rd4], %r11;
	ret;
}
.section	.debug_abbrev
{
.b8 1
}
"""


def test_loads_are_traced_to_their_arguments_through_loops():
    listing = read_ptx(TEXT)
    assert (listing.entry, listing.version, listing.target, listing.threads) == ("kernel", "8.5", "sm_87", 64)
    assert listing.parameters == ("u64", "u64", "u32")
    assert listing.loads == (
        Load(frozenset({0, 2}), 16, 0, True),
        Load(frozenset({0, 2}), 16, 0, False),
        Load(frozenset({1}), 16, 1, True),
        Load(frozenset({0, 1, 2}), 2, 2, True),  # its address is made later in the loop
        Load(frozenset(), 4, 1, True),  # from an address that was itself loaded
    )
    assert [load.bytes for load in listing.of(1)] == [16, 2]


def test_matrix_instructions_are_counted():
    assert read_ptx(TEXT).matrix == {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": 1}


@pytest.mark.parametrize("text", ["", TEXT.replace(".reqntid 64", ""), TEXT[: TEXT.index("ret;")]])
def test_what_is_no_whole_ptx_is_refused(text):
    with pytest.raises(ArtifactError, match="PTX"):
        read_ptx(text)
