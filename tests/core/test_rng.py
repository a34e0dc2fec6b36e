import numpy as np
import torch

from telos.core.rng import Rng

PINNED = {
    "root": 4246866556266386882,
    "batch 3": 6854028828889333657,
    "numpy": [44, 766, 863, 308],
    "torch": [140, 93, 655, 765],
}


def test_a_stream_depends_on_its_path_alone():
    first = Rng(3).at("batch", 7).torch()
    Rng(3).at("other").torch().get_state()
    other = Rng(3).at("update", 7).torch()
    torch.rand(5, generator=other)
    again = Rng(3).at("batch").at(7).torch()
    assert torch.equal(torch.rand(9, generator=first), torch.rand(9, generator=again))
    draws = [Rng(3).at("x", i).numpy().random() for i in range(5)]
    assert draws == [Rng(3).at("x", i).numpy().random() for i in reversed(range(5))][::-1]


def test_numbers_are_pinned():
    # A change here changes every run of every version: resumed runs and recorded digests with them.
    assert Rng(0).integer() == PINNED["root"]
    assert Rng(0).at("batch", 3).integer() == PINNED["batch 3"]
    assert Rng(0).at("batch", 3).numpy().integers(1000, size=4).tolist() == PINNED["numpy"]
    assert torch.randint(1000, (4,), generator=Rng(0).at("batch", 3).torch()).tolist() == PINNED["torch"]


def test_names_numbers_and_places_are_told_apart():
    paths = [(), ("1",), (1,), ("1", "2"), ("12",), (12,), (1, 2), (2, 1), ("a", "b"), ("ab",), ("",), ("", "")]
    values = [Rng(seed).at(*path).integer() for seed in (0, 1, 10) for path in paths]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)


def test_streams_of_neighbouring_steps_are_independent():
    rows = np.stack([Rng(0).at("step", i).numpy().standard_normal(2000) for i in range(20)])
    correlations = np.corrcoef(rows)[~np.eye(20, dtype=bool)]
    assert np.abs(correlations).max() < 0.1  # 4.5 standard errors of 1 / sqrt(2000)
