from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastseq import _comm

FLAT_ALIGNMENT = 64  # bytes of a cache line
NATIVE = {
    torch.float16: _comm.DType.float16,
    torch.bfloat16: _comm.DType.bfloat16,
    torch.float32: _comm.DType.float32,
    torch.float64: _comm.DType.float64,
}
DTYPES = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 4, torch.float64: 8}


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from(list(DTYPES))), max_size=20))
def test_tensors_of_a_dtype_lie_in_order_aligned_and_apart(items):
    by_dtype = _comm.group_by_dtype([NATIVE[dtype] for _, dtype in items])
    groups = [
        (members, _comm.flat_layout([items[i][0] for i in members], dtype, FLAT_ALIGNMENT)[0])
        for dtype, members in by_dtype
    ]
    assert sorted(i for members, _ in groups for i in members) == list(range(len(items)))
    assert [items[members[0]][1] for members, _ in groups] == list(
        dict.fromkeys(dtype for _, dtype in items)
    )
    for members, offsets in groups:
        dtype = items[members[0]][1]
        assert {items[i][1] for i in members} == {dtype}
        end = 0
        for i, offset in zip(members, offsets, strict=True):
            assert offset * DTYPES[dtype] % FLAT_ALIGNMENT == 0
            assert 0 <= offset - end < FLAT_ALIGNMENT // DTYPES[dtype]
            end = offset + items[i][0]


def test_dense_layout_has_no_gaps():
    offsets, numel = _comm.flat_layout([3, 0, 5], _comm.DType.float32, 1)
    assert (offsets, numel) == ([0, 3, 3], 8)


@pytest.mark.parametrize(
    ("numels", "alignment", "message"),
    [
        ([-1], 64, "negative"),
        ([1], 2, "multiple"),
        ([1], 6, "multiple"),
        ([2**62, 2**62], 64, "2.63"),
    ],
)
def test_refuses_nonsense(numels, alignment, message):
    with pytest.raises(ValueError, match=message):
        _comm.flat_layout(numels, _comm.DType.float32, alignment)
