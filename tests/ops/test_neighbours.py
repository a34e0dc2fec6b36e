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


def test_a_key_that_is_a_row_is_found_at_distance_zero_among_large_numbers():
    # Products of numbers near 1000 are rounded by more than the distances between these rows.
    rng = Rng(0).torch()
    data = 1000 + torch.randn(4000, 3, generator=rng)
    distances, found = nearest_rows(data[100:110], data, 1, spare=60)
    assert found[:, 0].tolist() == list(range(100, 110)) and distances.max() == 0
