"""Packed hidden states against the network itself: values, gradients, and what is left to the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import MODELS, REFUSED, made
from torch import Tensor

import telos
from telos.core.numerics import PLAIN, Numerics, using
from telos.core.rng import Rng
from telos.lm import packed
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel, load_model
from telos.lm.packed import Packed, Texts, agrees, states_before
from telos.lm.soup import GeometricMixture
from telos.lm.tokens import Sequences, pad

PACKED = Numerics(forward="packed")
each_model = pytest.mark.parametrize("name", MODELS)


def batch(prompts: tuple[int, ...] = (5, 5, 1, 9, 5), completions: tuple[int, ...] = (3, 7, 4, 1, 2)) -> Sequences:
    """Random ids; the prompts of the first, the second and the fifth are equal."""
    draw = Rng(11).numpy()
    texts = [draw.integers(3, 60, n) for n in prompts]
    texts[1] = texts[4] = texts[0]
    return pad(texts, [draw.integers(3, 60, n) for n in completions])


def both(model: LanguageModel, sequences: Sequences) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Log-probs (B, T) and gradients of a weighted sum of them by the plain way, then by the packed one."""
    results = []
    weights = torch.randn(sequences.tokens.shape, generator=Rng(1).torch())
    for way in (PLAIN, PACKED):
        model.network.zero_grad()
        with using(way):
            values = token_log_probs(model, sequences)
        (weights * values).sum().backward()
        found = {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}
        results.append((values.detach(), found))
    return results


@each_model
def test_log_probs_and_gradients_are_the_network_s(name: str):
    model = MODELS[name]()
    assert states_before(model, batch()) is not None
    (values, gradients), (own, found) = both(model, batch())
    torch.testing.assert_close(own, values, rtol=1e-4, atol=1e-4)
    assert set(found) == set(gradients)
    for key, gradient in gradients.items():
        assert (found[key] - gradient).norm() <= 2e-3 * gradient.norm(), key
    error, size = (torch.stack([f(key).norm() for key in gradients]).norm() for f in (
        lambda key: found[key] - gradients[key], lambda key: gradients[key]))  # fmt: skip
    assert error <= 1e-5 * size


@pytest.mark.parametrize("shape", [((4,), (1,)), ((1,), (6,)), ((3, 3, 3, 2, 3), (1, 1, 1, 1, 1)), ((2, 7), (5, 5))])
def test_any_lengths(shape: tuple[tuple[int, ...], tuple[int, ...]]):
    draw = Rng(2).numpy()
    prompts = [np.arange(4, 4 + n) for n in shape[0]]  # equal ones among them
    sequences = pad(prompts, [draw.integers(3, 60, n) for n in shape[1]])
    (values, _), (own, _) = both(made("Qwen3", head_dim=8), sequences)
    torch.testing.assert_close(own, values, rtol=1e-4, atol=1e-4)


def test_padding_plays_no_part():
    model, sequences = made("Llama"), batch()
    wider = torch.randint(3, 60, (len(sequences.tokens), sequences.tokens.shape[1] + 4), generator=Rng(3).torch())
    place = torch.arange(wider.shape[1])[None] < sequences.lengths[:, None]
    wider[:, : sequences.tokens.shape[1]] = torch.where(
        place[:, : sequences.tokens.shape[1]], sequences.tokens, wider[:, : sequences.tokens.shape[1]]
    )
    with using(PACKED), torch.no_grad():
        own = token_log_probs(model, Sequences(wider, sequences.lengths, sequences.boundaries))
        expected = token_log_probs(model, sequences)
    torch.testing.assert_close(own[:, : expected.shape[1]], expected)
    assert (own[:, expected.shape[1] :] == 0).all()


def test_a_prompt_is_read_once_and_no_padding():
    sequences = batch()
    found = Packed(sequences)
    assert len(found.prompts.tokens) == 5 + 1 + 9 and found.owners.tolist() == [0, 0, 1, 2, 0]
    assert len(found.completions.tokens) == (3 + 7 + 4 + 1 + 2) - 5  # nothing is asked after the last ones
    assert found.pairs == 5 * 6 * (9 + 6)


def test_a_grid_and_its_rows_are_inverse():
    tokens = torch.arange(12).view(3, 4)
    texts = Texts.cut(tokens, torch.tensor([1, 0, 2]), torch.tensor([3, 4, 2]))
    assert texts.tokens.tolist() == [1, 2, 4, 5, 6, 7] and texts.positions.tolist() == [1, 2, 0, 1, 2, 3]
    values = torch.randn(6, 2, 3, generator=Rng(0).torch())
    grid = texts.grid(values)
    assert grid.shape == (3, 2, 4, 3) and torch.equal(texts.rows(grid), values.flatten(1))
    assert (grid[2] == 0).all() and (grid[0, :, 2:] == 0).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_unknown_is_left_to_the_network(name: str):
    model = REFUSED[name]()
    assert states_before(model, batch()) is None
    with using(PACKED):
        own = token_log_probs(model, batch())
    assert torch.equal(own, token_log_probs(model, batch()))


def dropping() -> LanguageModel:
    model = made("Llama", attention_dropout=0.5)
    model.network.train()
    return model


def checkpointed() -> LanguageModel:
    model = made("Llama")
    model.network.gradient_checkpointing_enable()
    return model


@pytest.mark.parametrize(
    "model", [dropping, checkpointed, lambda: GeometricMixture([made("Llama"), made("Llama")], [0.5, 0.5])]
)
def test_what_training_does_otherwise_is_left_to_the_network(model: Any):
    assert states_before(model(), batch()) is None


def test_dropout_is_no_matter_outside_training():
    model = made("Llama", attention_dropout=0.5)
    model.network.eval()
    assert states_before(model, batch()) is not None


def test_a_mask_that_is_too_large_is_not_made(monkeypatch: pytest.MonkeyPatch):
    model = made("Llama")
    monkeypatch.setattr(packed, "MOST_PAIRS", 100)
    assert states_before(model, batch()) is None


def test_a_network_whose_states_differ_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    model, other = made("Llama"), made("Llama")
    assert agrees(model)
    monkeypatch.setattr(packed, "turned", lambda x, cos, sin: x)
    assert not agrees(other) and states_before(other, batch()) is None


def test_training_is_that_of_the_plain_way():
    pairs = telos.Preferences(["A cat", "A dog", "A cat"], [" sat", " ran away", " sat"], [" ate", " ate", " ran"])
    products = []
    for numerics in ("plain", "auto"):
        products.append(
            telos.DPO(batch_size=3, learning_rate=1e-3, warmup_steps=0).fit(
                pairs, model="telos:stories260k", steps=4, device="cpu", numerics=numerics
            )
        )
    start = dict(load_model("telos:stories260k").network.named_parameters())
    plain, fast = (dict(product.model.network.named_parameters()) for product in products)
    assert any(not torch.equal(fast[name], tensor) for name, tensor in plain.items())  # another order of sums
    for name, tensor in plain.items():
        error, moved = (fast[name] - tensor).abs().mean(), (tensor - start[name]).abs().mean()
        assert error <= 1e-2 * moved, name
