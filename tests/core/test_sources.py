from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from telos.core.rng import Rng
from telos.core.sources import Both, Epochs, Uniform
from telos.data.records import Record


@dataclass(frozen=True)
class Numbers(Record):
    value: torch.Tensor
    name: str = "n"


class Items:
    """A data set whose batches are their indices."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def batch(self, index: np.ndarray) -> list[int]:
        return index.tolist()


def behaviour():
    raise AssertionError("a data set does not act")


def test_uniform_draws_rows_of_the_record_by_the_step_alone():
    source = Uniform(Numbers(torch.arange(10.0)), 4000)
    first = source.next(behaviour, Rng(0).at("source", 1))
    source.next(behaviour, Rng(0).at("source", 2))
    again = source.next(behaviour, Rng(0).at("source", 1))
    assert torch.equal(first.value, again.value) and first.name == "n" and len(first) == 4000
    counts = torch.bincount(first.value.long(), minlength=10)
    assert ((counts - 400).abs() < 5 * 19).all()  # five standard deviations: sqrt(4000 * 0.1 * 0.9) = 19


@pytest.mark.parametrize(("n", "size"), [(10, 3), (9, 3), (1, 5), (100, 7), (33, 1)])
@pytest.mark.parametrize("by_length", [False, True])
def test_every_item_once_an_epoch_in_a_new_order(n: int, size: int, by_length: bool):
    lengths = np.arange(n)[::-1] if by_length else None
    source = Epochs(Items(n), size, Rng(0), lengths)
    epochs = [[source.next(behaviour, Rng(9)) for _ in range(source.batches_per_epoch)] for _ in range(3)]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(n))
        assert sorted(map(len, batches), reverse=True)[: n // size] == [size] * (n // size)
    assert n < 5 or epochs[0] != epochs[1] != epochs[2]
    assert Epochs(Items(n), size, Rng(1)).plan(0)[0].tolist() != epochs[0][0] or n < 33


def test_buckets_hold_items_of_like_length_and_come_in_random_order():
    lengths = np.random.default_rng(0).integers(1, 1000, 160)
    source = Epochs(Items(160), 10, Rng(0), lengths)
    batches = [lengths[np.array(source.next(behaviour, Rng(0)))] for _ in range(16)]
    # One window of 16 batches: sorted, so the batches' ranges do not overlap.
    ranges = sorted((batch.min(), batch.max()) for batch in batches)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    firsts = [int(batch.min()) for batch in batches]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)


def test_a_cursor_is_all_that_resuming_needs():
    whole, start = (Epochs(Items(10), 3, Rng(4), np.arange(10) % 4) for _ in range(2))
    expected = [whole.next(behaviour, Rng(0)) for _ in range(11)]
    got = [start.next(behaviour, Rng(0)) for _ in range(6)]
    tensors, numbers = start.state()
    assert tensors == {} and numbers == {"cursor": 6}
    later = Epochs(Items(10), 3, Rng(4), np.arange(10) % 4)
    later.load_state(tensors, numbers)
    assert got + [later.next(behaviour, Rng(0)) for _ in range(5)] == expected


def test_rows_are_taken_as_by_brackets():
    both = Both(Numbers(torch.arange(10.0)), Numbers(torch.arange(20).view(10, 2)))
    index = torch.tensor([4, 0, 4])
    taken, expected = both.take(index), both[index]
    assert torch.equal(taken.first.value, expected.first.value) and taken.first.name == "n"
    assert torch.equal(taken.second.value, expected.second.value) and taken.second.value.tolist()[0] == [8, 9]
    with pytest.raises(IndexError):
        both.take(torch.tensor([10]))
