"""Encoders of windows: what they read and what they do not."""

import pytest
import torch

from telos.core.rng import Rng
from telos.nets.encoders import ENCODERS, WindowEncoder


@pytest.mark.parametrize("kind", ENCODERS)
def test_masked_steps_are_not_read_and_real_ones_are(kind: str):
    net = WindowEncoder(kind, 4, 3, (8,), 5, Rng(1).torch())
    steps = torch.randn(6, 4, 3, generator=Rng(2).torch())
    mask = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 2])[:, None]
    plain = net(steps, mask)
    assert plain.shape == (6, 5)
    assert torch.equal(net(torch.where(mask[..., None], steps, 99.0), mask), plain)
    assert ((net(steps + 0.5 * (torch.arange(4) == 0)[:, None], mask) - plain).abs().amax(1) > 1e-4).all()
    swapped = net(steps[:, [1, 0, 2, 3]], mask.new_ones(6, 4)) - net(steps, mask.new_ones(6, 4))
    assert bool(swapped.abs().max() < 1e-6) == (kind == "deepset")  # a set has no order


@pytest.mark.parametrize("kind", ENCODERS)
def test_weights_come_from_the_stream(kind: str):
    state = torch.get_rng_state()
    first, second, other = (WindowEncoder(kind, 4, 3, (8,), 5, Rng(seed).torch()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))
    assert all(p.isfinite().all() for p in first.parameters())
