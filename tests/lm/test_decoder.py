"""The decoder against the network itself: logits, tokens, log-probs, and what it leaves to the network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_toys import tiny
from networks import MODELS, REFUSED, made
from scipy.stats import chisquare
from torch import Tensor

import telos.lm.decoder
from telos.core import compiler, programs
from telos.core.errors import HealthError
from telos.core.numerics import PLAIN, Numerics, using
from telos.core.rng import Rng
from telos.lm.decoder import Copied, Decoder, Kept, agrees, decoders, served
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.sample import drawn, sample, transformed
from telos.lm.soup import GeometricMixture
from telos.lm.tokens import Sequences

FUSED, COMPILED = Numerics(decoder="fused"), Numerics(decoder="compiled")
each_model = pytest.mark.parametrize("name", MODELS)
each_way = pytest.mark.parametrize("way", ["fused", "compiled"])


@pytest.fixture(autouse=True)
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Programs are run operator by operator as they are given to the compiler: their numbers of sequences."""
    counts: list[int] = []

    def program(code: str, tensors: Sequence[Tensor], *, varying: Sequence[Mapping[int, str]]) -> Any:
        run, shapes = compiler.Function(code), [tensor.shape for tensor in tensors]

        def checked(given: Sequence[Tensor]) -> list[Tensor]:
            sizes: dict[str, int] = {}
            for tensor, shape, names in zip(given, shapes, varying, strict=True):
                assert tensor.dim() == len(shape) and tensor.is_contiguous()
                for place, (size, usual) in enumerate(zip(tensor.shape, shape, strict=True)):
                    assert size == (sizes.setdefault(names[place], size) if place in names else usual)
            assert sizes["rows"] >= 2 and 2 <= sizes["used"] < sizes["total"]
            counts.append(sizes["rows"])
            return [run(*given)]

        return checked

    monkeypatch.setattr("telos.lm.decoder.program", program)
    return counts


def prompts(model: LanguageModel, lengths: tuple[int, ...] = (5, 1, 9, 5, 3)) -> list[np.ndarray]:
    """Random ids; the first and the fourth are equal."""
    draw = Rng(11).numpy()
    rows = [draw.integers(3, model.causal.config.vocab_size, n) for n in lengths]
    rows[3] = rows[0]
    return rows


@pytest.mark.parametrize(("lay", "way"), [(Copied, "fused"), (Copied, "compiled"), (Kept, "fused")])
@each_model
@torch.inference_mode()
def test_logits_are_the_network_s_token_by_token(
    name: str, lay: type, way: str, used: list[int], monkeypatch: pytest.MonkeyPatch
):
    model = MODELS[name]()
    if lay is Kept:
        monkeypatch.setattr("telos.lm.decoder.COPIED", 0)
    rows, steps = prompts(model), 12
    following = torch.from_numpy(Rng(12).numpy().integers(3, model.causal.config.vocab_size, (len(rows), steps)))
    growing = Decoder(model.causal, rows, steps, way)
    for step in range(steps):
        logits = growing.logits()
        for row, prompt in enumerate(rows):
            tokens = torch.cat([torch.from_numpy(prompt), following[row, :step]])[None]
            with torch.no_grad():
                expected = model.network(input_ids=tokens).logits[0, -1]
            assert (logits[row] - expected).abs().max() <= 1e-4 * expected.abs().max()
        growing.extend(following[:, step])
    assert used == [len(rows)] * (steps + 1 if way == "compiled" else 0)


@each_way
@each_model
@torch.inference_mode()
def test_sequences_that_stay_are_not_changed_by_those_that_leave(name: str, way: str):
    model = MODELS[name]()
    rows = prompts(model)
    whole, fewer = Decoder(model.causal, rows, 6, way), Decoder(model.causal, rows, 6, way)
    kept = torch.tensor([1, 2, 4])
    fewer.keep(kept)
    for step in range(4):
        if step == 2:  # one alone is not the program's
            fewer.keep(torch.tensor([1]))
            kept = kept[1:2]
        assert torch.allclose(whole.logits()[kept], fewer.logits(), rtol=1e-4, atol=1e-4)
        tokens = torch.full((len(rows),), 7 + step)
        whole.extend(tokens)
        fewer.extend(tokens[kept])


@each_model
def test_all_paths_are_greedy_alike(name: str):
    model = MODELS[name]()
    found = []
    for numerics in (PLAIN, FUSED, COMPILED):
        with using(numerics):
            found.append(sample(model, prompts(model), n=2, rng=Rng(2).torch(), max_new_tokens=16, temperature=0))
    plain = found[0]
    for fast in found[1:]:
        assert plain.texts == fast.texts and torch.equal(plain.tokens, fast.tokens)
        assert torch.equal(plain.lengths, fast.lengths) and torch.equal(plain.finished, fast.finished)
        assert (fast.log_probs == 0).all()


@each_model
@pytest.mark.parametrize("transform", [{}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.8}], ids=str)
def test_log_probs_are_those_of_the_network_under_the_transform(name: str, transform: dict[str, Any]):
    model = MODELS[name]()
    with using(FUSED):
        some = sample(model, prompts(model), n=3, rng=Rng(2).torch(), max_new_tokens=16, batch_size=9, **transform)
    for row, (start, end) in enumerate(zip(some.boundaries.tolist(), some.lengths.tolist(), strict=True)):
        with torch.no_grad():
            logits = model.network(input_ids=some.tokens[row : row + 1, :end]).logits[0, start - 1 : -1]
        places = some.tokens[row, start:end, None]
        expected = transformed(logits.float(), **transform).gather(-1, places)[:, 0]
        torch.testing.assert_close(some.log_probs[row, start:end], expected, rtol=1e-3, atol=1e-3)
        assert expected.isfinite().all() and (some.log_probs[row, end:] == 0).all()
    assert len({tuple(row) for row in some.tokens.tolist()}) > 5  # copies of a prompt go on in their own ways


@each_way
@pytest.mark.parametrize("mixed", [False, True])
def test_sequences_whose_cache_is_large_are_grown_in_groups(way: str, mixed: bool, monkeypatch: pytest.MonkeyPatch):
    """A token takes 2 x 4 bytes x 2 layers x 2 heads x 8 = 256 bytes, or twice that with twice the heads."""
    one = made("Llama")
    model = GeometricMixture([one, made("Llama", num_key_value_heads=4)], [0.3, 0.7]) if mixed else one
    rows, found = prompts(one, (5, 1, 9, 5, 3, 2, 4)), []
    with using(PLAIN):
        plain = sample(model, rows, rng=Rng(2).torch(), max_new_tokens=12, temperature=0)
    for size, groups in [(1 << 26, 1), (7 * (9 + 12) * 256, 3 if mixed else 1), (1, len(rows))]:
        monkeypatch.setattr("telos.lm.decoder.GROUP", size)
        with using(Numerics(decoder=way)):
            assert len(decoders(model, rows, 12)) == groups
            found.append(sample(model, rows, rng=Rng(2).torch(), max_new_tokens=12, temperature=0))
    assert all(some.texts == plain.texts and torch.equal(some.tokens, plain.tokens) for some in found)


def test_sequences_that_have_ended_leave_and_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model, found = tiny(), []
    rows = [np.arange(1, 1 + n) for n in (2, 5, 3)] * 8
    for share in (1.0, 0.0):
        monkeypatch.setattr("telos.lm.sample.SHRINK", share)
        with using(FUSED):
            found.append(sample(model, rows, rng=Rng(5).torch(), max_new_tokens=20))
    assert (found[0].lengths - found[0].boundaries < 15).sum() > len(rows) / 4
    inside = torch.arange(found[0].tokens.shape[1]) < found[0].lengths[:, None]
    assert torch.equal(found[0].lengths, found[1].lengths)
    assert torch.equal(found[0].tokens[inside], found[1].tokens[inside])


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


def test_draws_have_the_probabilities_exactly():
    probs = torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    tokens = drawn(probs.log().expand(1000, -1), uniform)
    assert torch.bincount(tokens, minlength=5).tolist() == [500, 0, 200, 300, 0]
    assert (tokens.diff() >= 0).all()


@pytest.mark.parametrize("columns", [3, 1000, 32000])
def test_the_ends_of_the_unit_interval_are_possible_tokens(columns: int):
    log_probs = torch.randn(64, columns, generator=Rng(6).torch()).log_softmax(-1)
    log_probs[:, [0, -1]] = -torch.inf
    for end in (0.0, 1 - 2**-24):
        tokens = drawn(log_probs, torch.full((64,), end))
        assert (log_probs.gather(-1, tokens[:, None]) > -torch.inf).all()


def test_next_tokens_are_distributed_as_multinomial_draws_them():
    log_probs = (2 * torch.randn(1, 12, generator=Rng(7).torch())).log_softmax(-1)
    count = 20000
    uniform = torch.rand(count, generator=Rng(8).torch())
    counts = torch.bincount(drawn(log_probs.expand(count, -1), uniform), minlength=12)
    assert chisquare(counts.numpy(), count * log_probs[0].exp().double().numpy(), sum_check=False).pvalue > 0.01


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
    with using(FUSED):
        assert not served(model.causal, 20) and not decoders(model, rows, 5)
        assert len(sample(model, rows, rng=Rng(0).torch(), max_new_tokens=5).texts) == len(rows)


def test_a_network_whose_logits_differ_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    model = made("Llama")
    assert agrees(model, "fused")
    other, plain = made("Llama"), Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda self: plain(self) * 1.01)
    with using(FUSED):
        assert not agrees(other, "fused") and not decoders(other, prompts(other), 4)


def test_a_program_that_differs_is_not_used(used: list[int], monkeypatch: pytest.MonkeyPatch):
    model, right = made("Llama"), telos.lm.decoder.program  # type: ignore[attr-defined]

    def program(*given: Any, **named: Any) -> Any:
        run = right(*given, **named)
        return lambda tensors: [found.roll(1, -1) for found in run(tensors)]

    monkeypatch.setattr("telos.lm.decoder.program", program)
    with using(COMPILED):
        (begin,) = decoders(model, prompts(model), 4)
    growing = begin()
    assert isinstance(growing, Decoder) and growing.program is None
    assert not agrees(model, "compiled") and agrees(model, "fused") and used


@pytest.mark.parametrize("reason", ["no compiler", "a large network"])
def test_without_a_program_tokens_are_added_by_torch_s_operators(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("telos.lm.decoder.program", programs.program)
    monkeypatch.setenv("TELOS_CACHE", str(tmp_path))
    if reason == "no compiler":
        monkeypatch.setattr("telos.core.programs.sys.executable", "/bin/false")
    else:
        monkeypatch.setattr("telos.lm.decoder.COPIED", 0)
    model = made("Llama")
    with using(COMPILED):
        (begin,) = decoders(model, prompts(model), 4)
    growing = begin()
    assert isinstance(growing, Decoder) and growing.program is None


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_one_program_serves_any_number_of_sequences_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the compiler itself."""
    monkeypatch.setattr("telos.lm.decoder.program", programs.program)
    monkeypatch.setenv("TELOS_CACHE", str(tmp_path))
    model = made("Qwen3", head_dim=8)
    with using(COMPILED):
        assert agrees(model, "compiled")
    for lengths, n, new in [((3, 1, 2, 3, 3), 1, 5), ((5, 1, 9, 5, 3), 7, 24), ((1, 1, 1, 1), 1, 12)]:
        found = []
        for numerics in (PLAIN, COMPILED):
            with using(numerics):
                rows = prompts(model, lengths)
                found.append(sample(model, rows, n=n, rng=Rng(2).torch(), max_new_tokens=new, temperature=0))
        assert torch.equal(found[0].tokens, found[1].tokens)
    assert len(list((tmp_path / "compiled").iterdir())) == 1


def test_a_mixture_is_computed_by_the_decoders_of_its_parts():
    mixture = GeometricMixture([made("Llama"), made("Qwen2")], [0.3, 0.7])
    rows = prompts(made("Llama"))
    with using(FUSED):
        (begin,) = decoders(mixture, rows, 8)
    growing = begin()
    for row, prompt in enumerate(rows):
        with torch.no_grad():
            expected = mixture.head(mixture.hidden(torch.from_numpy(prompt)[None]))[0, -1].log_softmax(-1)
        with torch.inference_mode():
            own = growing.logits()[row].log_softmax(-1)
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3)
    found = []
    for numerics in (PLAIN, FUSED):
        with using(numerics):
            found.append(sample(mixture, rows, rng=Rng(2).torch(), max_new_tokens=8, temperature=0))
    assert found[0].texts == found[1].texts


def test_a_broken_network_is_told():
    model = made("Llama")
    assert agrees(model, "fused")
    with torch.no_grad():
        model.causal.get_output_embeddings().weight.fill_(torch.nan)
    with using(FUSED), pytest.raises(HealthError, match="not finite"):
        sample(model, prompts(model), rng=Rng(0).torch(), max_new_tokens=3)
