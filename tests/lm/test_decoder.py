"""The decoder against the network itself: logits, tokens, log-probs, and what it leaves to the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import MODELS, REFUSED, made

from telos.core.errors import HealthError
from telos.core.numerics import PLAIN, Numerics, using
from telos.core.rng import Rng
from telos.lm.decoder import Copied, Decoder, Kept, agrees, decoder, served
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.sample import race, sample
from telos.lm.soup import GeometricMixture
from telos.lm.tokens import Sequences

FUSED = Numerics(decoder="fused")
each_model = pytest.mark.parametrize("name", MODELS)


def prompts(model: LanguageModel, lengths: tuple[int, ...] = (5, 1, 9, 5, 3)) -> list[np.ndarray]:
    """Random ids; the first and the fourth are equal."""
    draw = Rng(11).numpy()
    rows = [draw.integers(3, model.causal.config.vocab_size, n) for n in lengths]
    rows[3] = rows[0]
    return rows


@pytest.mark.parametrize("lay", [Copied, Kept])
@each_model
@torch.inference_mode()
def test_logits_are_the_network_s_token_by_token(name: str, lay: type, monkeypatch: pytest.MonkeyPatch):
    model = MODELS[name]()
    if lay is Kept:
        monkeypatch.setattr("telos.lm.decoder.COPIED", 0)
    rows, steps = prompts(model), 12
    following = torch.from_numpy(Rng(12).numpy().integers(3, model.causal.config.vocab_size, (len(rows), steps)))
    growing = Decoder(model.causal, rows, steps)
    for step in range(steps):
        logits = growing.logits()
        for row, prompt in enumerate(rows):
            tokens = torch.cat([torch.from_numpy(prompt), following[row, :step]])[None]
            with torch.no_grad():
                expected = model.network(input_ids=tokens).logits[0, -1]
            assert (logits[row] - expected).abs().max() <= 1e-4 * expected.abs().max()
        growing.extend(following[:, step])


@each_model
@torch.inference_mode()
def test_sequences_that_stay_are_not_changed_by_those_that_leave(name: str):
    model = MODELS[name]()
    rows = prompts(model)
    whole, fewer = Decoder(model.causal, rows, 6), Decoder(model.causal, rows, 6)
    kept = torch.tensor([1, 2, 4])
    fewer.keep(kept)
    for step in range(4):
        assert torch.allclose(whole.logits()[kept], fewer.logits(), rtol=1e-4, atol=1e-4)
        tokens = torch.full((len(rows),), 7 + step)
        whole.extend(tokens)
        fewer.extend(tokens[kept])


@each_model
@pytest.mark.parametrize("transform", [{}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.8}, {"temperature": 0}])
def test_both_paths_draw_the_same_tokens_from_the_same_generator(name: str, transform: dict[str, Any]):
    model = MODELS[name]()
    rows = prompts(model)
    found = []
    for numerics in (PLAIN, FUSED):
        with using(numerics):
            found.append(sample(model, rows, n=3, rng=Rng(2).torch(), max_new_tokens=16, batch_size=9, **transform))
    plain, fused = found
    assert plain.texts == fused.texts
    inside = torch.arange(plain.tokens.shape[1]) < plain.lengths[:, None]
    assert torch.equal(plain.lengths, fused.lengths) and torch.equal(plain.finished, fused.finished)
    assert torch.equal(plain.tokens[inside], fused.tokens[inside])
    assert torch.allclose(plain.log_probs, fused.log_probs, rtol=1e-3, atol=1e-3)


def test_greedy_tokens_are_those_of_generate():
    model = made("Llama")
    (prompt, *_) = prompts(model)
    ids = torch.from_numpy(prompt)[None]
    expected = model.network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0,
        eos_token_id=model.eos_id,
    )  # fmt: skip
    with using(FUSED):
        drawn = sample(model, [prompt], rng=Rng(0).torch(), max_new_tokens=24, temperature=0)
    assert drawn.tokens[0, : int(drawn.lengths[0])].tolist() == expected[0].tolist()


def test_stored_log_probs_are_those_of_the_trainer():
    model = made("Qwen3", head_dim=8)
    with using(FUSED):
        drawn = sample(model, prompts(model), n=2, rng=Rng(4).torch(), max_new_tokens=12)
    again = token_log_probs(model, Sequences(drawn.tokens, drawn.lengths, drawn.boundaries))
    assert torch.allclose(drawn.log_probs, again.detach(), rtol=1e-4, atol=1e-4)
    assert drawn.log_probs.abs().max() > 0.1


def test_next_tokens_have_the_network_s_probabilities():
    probs = torch.tensor([[0.5, 0.2, 0.3], [0.0, 0.9, 0.1]])
    rows, generator = torch.arange(2), Rng(1).torch()
    drawn = torch.stack([race(probs, rows, 2, generator) for _ in range(4000)])
    for row in range(2):
        shares = torch.bincount(drawn[:, row], minlength=3) / 4000
        assert (shares - probs[row]).abs().max() < 0.03
    assert not (drawn[:, 1] == 0).any()


@pytest.mark.parametrize("rows", [7, 5000])
def test_draws_are_those_of_multinomial(rows: int):
    probs = torch.rand(rows, 300, generator=Rng(6).torch())
    probs /= probs.sum(-1, keepdim=True)
    wanted = torch.multinomial(probs, 1, generator=Rng(8).torch())[:, 0]
    assert torch.equal(race(probs, torch.arange(rows), rows, Rng(8).torch()), wanted)
    some = torch.arange(0, rows, 3)
    assert torch.equal(race(probs[some], some, rows, Rng(8).torch()), wanted[some])


def test_trained_weights_are_seen():
    model = made("Llama")
    (prompt, *_) = prompts(model)
    with using(FUSED):
        before = sample(model, [prompt], rng=Rng(0).torch(), max_new_tokens=4, temperature=0)
        with torch.no_grad():
            model.causal.get_output_embeddings().weight[:10] += 100.0 * model.causal.model.norm.weight.sign()
        after = sample(model, [prompt], rng=Rng(0).torch(), max_new_tokens=4, temperature=0)
    with using(PLAIN):
        plain = sample(model, [prompt], rng=Rng(0).torch(), max_new_tokens=4, temperature=0)
    assert after.tokens.tolist() == plain.tokens.tolist() != before.tokens.tolist()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_unknown_is_left_to_the_network(name: str):
    model = REFUSED[name]()
    rows = prompts(model)
    assert not served(model.causal, 20) and decoder(model, rows, 5) is None
    with using(FUSED):
        assert len(sample(model, rows, rng=Rng(0).torch(), max_new_tokens=5).texts) == len(rows)


def test_a_network_whose_logits_differ_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    model = made("Llama")
    assert agrees(model)
    other, plain = made("Llama"), Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda self: plain(self) * 1.01)
    assert not agrees(other) and decoder(other, prompts(other), 4) is None


def test_a_mixture_is_computed_by_the_decoders_of_its_parts():
    mixture = GeometricMixture([made("Llama"), made("Qwen2")], [0.3, 0.7])
    rows = prompts(made("Llama"))
    found = []
    for numerics in (PLAIN, FUSED):
        with using(numerics):
            found.append(sample(mixture, rows, rng=Rng(2).torch(), max_new_tokens=8))
    assert found[0].texts == found[1].texts
    assert torch.allclose(found[0].log_probs, found[1].log_probs, rtol=1e-3, atol=1e-3)


def test_a_broken_network_is_told():
    model = made("Llama")
    assert agrees(model)
    with torch.no_grad():
        model.causal.get_output_embeddings().weight.fill_(torch.nan)
    with using(FUSED), pytest.raises(HealthError, match="not finite"):
        sample(model, prompts(model), rng=Rng(0).torch(), max_new_tokens=3)
