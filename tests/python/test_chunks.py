from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastseq.data.chunk_plan import ChunkPlan

plans = st.builds(
    dict,
    steps=st.integers(1, 23),
    sequences=st.integers(1, 17),
    batchsize=st.integers(1, 9),
    seqsize=st.integers(1, 11),
)


@given(plans, st.integers(1, 5), st.booleans())
def test_every_sample_is_seen_once_by_one_rank_in_order(sizes, ranks, by_time):
    seen = np.zeros((sizes["steps"], sizes["sequences"]), int)
    lengths = set()
    for rank in range(ranks):
        plan = ChunkPlan(**sizes, rank=rank, size=ranks, by_time=by_time)
        chunks = list(plan.chunks())
        lengths.add(len(chunks))
        assert len(chunks) == len(plan)
        assert [(c.block, c.index) for c in chunks] == sorted((c.block, c.index) for c in chunks)
        previous = None
        for c in chunks:
            seen[c.t0 : c.t1, c.n0 : c.n1] += 1
            assert c.t1 - c.t0 <= sizes["seqsize"]
            assert c.n1 - c.n0 <= sizes["batchsize"]
            if c.index:
                assert (c.t0, c.n0, c.n1) == (previous.t1, previous.n0, previous.n1)
            previous = c
    assert (seen == 1).all()
    assert len(lengths) == 1, "ranks make different numbers of steps"


@given(plans, st.integers(1, 4))
def test_ranks_together_have_the_blocks_of_one_process_with_the_union_batch(sizes, ranks):
    one = ChunkPlan(**{**sizes, "batchsize": sizes["batchsize"] * ranks})
    many = [list(ChunkPlan(**sizes, rank=r, size=ranks).chunks()) for r in range(ranks)]
    for step, whole in enumerate(one.chunks()):
        parts = [chunks[step] for chunks in many]
        assert {(p.t0, p.t1) for p in parts} == {(whole.t0, whole.t1)}
        covered = [n for p in parts for n in range(p.n0, p.n1)]
        assert covered == list(range(whole.n0, whole.n1))
        counts = [p.n1 - p.n0 for p in parts]
        assert max(counts) - min(counts) <= 1


def test_order_of_blocks_can_be_given():
    plan = ChunkPlan(steps=3, sequences=4, batchsize=2, seqsize=2)
    assert [(c.block, c.t0) for c in plan.chunks([1, 0])] == [(1, 0), (1, 2), (0, 0), (0, 2)]
