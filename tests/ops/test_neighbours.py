import pytest
import torch

from telos.core.rng import Rng
from telos.ops.neighbours import nearest_rows


@pytest.mark.parametrize(("rows", "width", "k"), [(1, 3, 1), (5, 2, 5), (40, 3, 4), (3000, 7, 1), (5000, 2, 9)])
def test_the_same_as_sorting_all_exact_distances(rows: int, width: int, k: int):
    rng = Rng(rows).torch()
    data, keys = torch.randn(rows, width, generator=rng), torch.randn(17, width, generator=rng)
    exact = (keys[:, None].double() - data.double()).norm(dim=-1)
    expected, index = exact.sort(-1)
    distances, found = nearest_rows(keys, data, k)
    assert torch.equal(found, index[:, :k])
    assert torch.allclose(distances.double(), expected[:, :k], atol=1e-6)


def test_rounding_of_large_numbers_is_undone_by_the_spare_groups():
    # Products of numbers near 60 are rounded by about as much as the squared distances of the nearest rows.
    data = 60 + torch.randn(4000, 3, generator=Rng(0).torch())
    without, _ = nearest_rows(data, data, 1, spare=0)
    distances, found = nearest_rows(data, data, 1)
    assert without.max() > 0 and distances.max() == 0 and found[:, 0].tolist() == list(range(4000))


def test_a_last_group_that_is_not_full_attracts_nobody():
    # All ranks |row|^2 - 2 key row are positive here, so a padding of 0 would win against them.
    data = torch.cat([torch.full((32, 1), 5.0), torch.full((1, 1), 9.0)])
    distances, found = nearest_rows(torch.tensor([[1.0]]), data + torch.arange(33)[:, None] / 100, 1, spare=0)
    assert found.item() == 0 and distances.item() == 4.0
