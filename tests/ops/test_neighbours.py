"""The nearest rows, against all distances in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from telos.core.numerics import Numerics, using
from telos.core.rng import Rng
from telos.ops import neighbours
from telos.ops.neighbours import GROUP, NearestRows


def distances(keys: Tensor, rows: Tensor) -> Tensor:
    """(B, N) float64."""
    return (keys[:, None].double() - rows.double()).norm(dim=-1)


@pytest.mark.parametrize(
    ("rows", "width", "k"),
    [(1, 3, 1), (5, 2, 5), (40, 3, 4), (3000, 7, 1), (5000, 2, 9), (GROUP, 4, 2), (GROUP + 1, 4, 3), (20000, 3, 70)],
)
def test_the_same_as_sorting_all_exact_distances(rows: int, width: int, k: int):
    rng = Rng(rows).torch()
    data, keys = torch.randn(rows, width, generator=rng), torch.randn(17, width, generator=rng)
    found = NearestRows(data)(keys, k)
    assert found.dtype == torch.int64 and torch.equal(found, distances(keys, data).sort(-1).indices[:, :k])


@pytest.mark.parametrize("groups", [8, 2048])
def test_blocks_may_be_of_any_size(groups: int):
    data, keys = (torch.randn(n, 5, generator=Rng(n).torch()) for n in (20001, 40))
    nearest = NearestRows(data)
    nearest.groups, nearest.blocks = groups, nearest.table.split(groups * GROUP)
    assert torch.equal(nearest(keys, 9), distances(keys, data).sort(-1).indices[:, :9])


def test_products_of_few_digits_are_not_used():
    data, keys = (torch.randn(n, 23, generator=Rng(n).torch()) for n in (20000, 256))
    nearest = NearestRows(data)
    exact, _ = nearest.best_groups(keys, 5)
    with using(Numerics(precision="medium")):
        found, _ = nearest.best_groups(keys, 5)
        assert torch.equal(found, exact) and torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("offset", [0.0, 60.0, 1e4])
def test_rounding_of_large_numbers_hides_no_row(offset: float):
    """Products of numbers near the offset are rounded by more than the squared distances of the nearest rows."""
    data = offset + torch.randn(4000, 3, generator=Rng(0).torch())
    data[0] = -offset  # so that the centre is not all of the offset
    assert NearestRows(data)(data, 1)[:, 0].tolist() == [int(row) for row in distances(data, data).argmin(-1)]


def test_keys_far_from_all_rows_are_measured_in_float64():
    data = 1e-3 * torch.randn(4000, 3, generator=Rng(1).torch())
    keys = 1e3 * torch.randn(9, 3, generator=Rng(2).torch())
    nearest = NearestRows(data)
    assert not nearest.by_rank(keys - nearest.centre, 2)[1].all()
    found = distances(keys, data).gather(1, nearest(keys, 2))
    torch.testing.assert_close(found, distances(keys, data).topk(2, largest=False).values, rtol=1e-9, atol=0)


def test_what_rank_alone_is_sure_of_is_right():
    data, keys = (torch.randn(n, 5, generator=Rng(n).torch()) for n in (9000, 300))
    nearest = NearestRows(data)
    index, sure = nearest.by_rank(keys - nearest.centre, 1)
    assert sure.sum() > 290
    assert torch.equal(index[sure, 0], distances(keys, data).argmin(-1)[sure])
    assert torch.equal(nearest.in_float64(keys - nearest.centre, 1)[:, 0], distances(keys, data).argmin(-1))


def test_of_equal_rows_any_are_found_once():
    data = torch.randn(50, 3, generator=Rng(3).torch()).repeat(40, 1)
    keys = data[:50] + 0.01
    found = NearestRows(data)(keys, 40)
    assert all(len(set(row.tolist())) == 40 for row in found)
    torch.testing.assert_close(
        distances(keys, data).gather(1, found), distances(keys, data).sort(-1).values[:, :40], rtol=1e-6, atol=1e-7
    )


def test_a_last_group_that_is_not_full_attracts_nobody():
    # All ranks |row|^2 - 2 key row are positive here, so a padding of 0 would win against them.
    data = torch.cat([torch.full((GROUP, 1), 5.0), torch.full((1, 1), 9.0)]) + torch.arange(GROUP + 1)[:, None] / 100
    assert NearestRows(data)(torch.tensor([[1.0]]), 1).tolist() == [[0]]
    assert NearestRows(data)(torch.tensor([[99.0]]), GROUP + 1).tolist() == [list(range(GROUP, -1, -1))]


@pytest.mark.parametrize("spare", [0, 1])
def test_few_spare_groups_cost_time_and_no_rows(spare: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "SPARE", spare)
    data, keys = (torch.randn(n, 2, generator=Rng(n).torch()) for n in (3000, 50))
    assert torch.equal(NearestRows(data)(keys, 3), distances(keys, data).sort(-1).indices[:, :3])
