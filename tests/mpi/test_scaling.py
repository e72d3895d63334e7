"""Statistics of all ranks' shares, against NumPy's of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastseq._util.tree import tree_leaves
from fastseq.data.scaling import affine as scalings
from fastseq.data.scaling.affine import scaling_state
from fastseq.distributed.replicas import Replicas


def share(comm, array, skew):
    """A part of `array` (T, N, …) for each rank; with `skew`, nothing for the last of several."""
    ranks = max(comm.size - skew, 1)
    return array[:, comm.rank :: ranks] if comm.rank < ranks else array[:, :0]


def measure(method, batches, structure, comm):
    named = (({"x": tree}, counts) for tree, counts in batches)
    return scalings.measure({"x": method}, named, {"x": structure}, Replicas(comm))["x"]


def assert_identical_on_all_ranks(comm, scaling):
    for leaf in tree_leaves(scaling_state(scaling)):
        assert torch.equal(leaf, comm.broadcast_(leaf.clone()))


@pytest.mark.parametrize("skew", [0, 1])
@pytest.mark.parametrize("method", ["standard", "robust"])
def test_measured_over_all_ranks(comm, method, skew):
    rng = np.random.default_rng(0)
    a = (1e6 + rng.standard_normal((200, 13, 2))).astype(np.float32)
    b = rng.standard_normal((200, 13, 1))
    b[rng.random(b.shape) < 0.3] = np.nan
    b[:, 0] = np.nan  # all that the first rank has, if there are many
    keep = rng.random((200, 13)) < 0.7
    mine = [
        torch.from_numpy(np.ascontiguousarray(share(comm, part, skew))) for part in (a, b, keep)
    ]
    batches = [
        ((mine[0][t : t + 30], mine[1][t : t + 30]), mine[2][t : t + 30]) for t in range(0, 200, 30)
    ]
    if not mine[0].numel():
        batches = []
    scaling = measure(method, batches, (mine[0][:0], mine[1][:0]), comm)
    assert_identical_on_all_ranks(comm, scaling)
    for affine, array in zip(scaling, (a, b), strict=True):
        flat = array[keep].astype(float)
        if method == "standard":
            center, scale = np.nanmean(flat, 0), np.nanstd(flat, 0)
        else:
            lower, center, upper = np.nanquantile(flat, [0.25, 0.5, 0.75], 0)
            scale = (upper - lower) / 1.349
        np.testing.assert_allclose(affine.center, center, rtol=1e-12, atol=1e-6)
        np.testing.assert_allclose(affine.scale, scale, rtol=1e-6)


def test_quantiles_of_many_samples(comm):
    whole = np.random.default_rng(0).standard_normal((300_000, 4, 1)).astype(np.float32)
    mine = torch.from_numpy(share(comm, whole, 0).copy())
    scaling = measure("robust", [(mine, None)], mine[:0], comm)
    again = measure("robust", [(mine, None)], mine[:0], comm)
    assert torch.equal(scaling.center, again.center)
    assert_identical_on_all_ranks(comm, scaling)
    ordered = np.sort(whole.reshape(-1))
    rank = np.searchsorted(ordered, scaling.center.item()) / ordered.size
    assert abs(rank - 0.5) < 0.01
    assert scaling.scale.item() == pytest.approx(1, rel=0.03)


def test_a_feature_without_values_is_an_error_on_all_ranks(comm):
    x = torch.full((5, 2, 2), torch.nan)
    x[..., 0] = 1
    with pytest.raises(ValueError, match="feature 1 has no finite center"):
        measure("standard", [(x, None)], x, comm)
    comm.barrier()
