"""Beam search as a method: greedy decoding at width 1, reranking with a purpose."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.methods.decoding.beam import Beam
from telos.worlds import tiny_sent

PROMPTS = ["topic1", "topic2", "topic3 word2 word2"]


def test_width_one_is_greedy_decoding():
    ours = Beam(width=1).fit(model=TINY, device="cpu").generate(PROMPTS, max_new_tokens=14)
    plain = LanguagePolicy(load_model(TINY)).generate(PROMPTS, temperature=0, max_new_tokens=14)
    assert torch.equal(ours.tokens, plain.tokens) and torch.equal(ours.finished, plain.finished)
    assert [text.strip() for text in ours.texts] == plain.texts and ours.prompts == plain.prompts


def test_the_answer_is_the_likeliest_of_wider_and_wider_beams():
    totals = []
    for width in (1, 4, 16):
        drawn = Beam(width=width).fit(model=TINY, device="cpu").generate(tiny_sent.TOPICS, max_new_tokens=16)
        totals.append(drawn.log_probs.sum(-1).mean().item())
    assert totals[0] < totals[1] <= totals[2] + 0.5
    policy = LanguagePolicy(load_model(TINY))
    # log P of the texts, computed by another route.
    again = policy.log_prob(drawn.prompts, drawn.texts)
    closed = drawn.finished
    assert closed.any() and torch.allclose(again[closed], drawn.log_probs.sum(-1)[closed], atol=1e-3)


def test_with_a_purpose_the_best_scored_beam_is_returned():
    plain = Beam(width=6).fit(model=TINY, device="cpu")
    ranked = Beam(width=6).fit(model=TINY, device="cpu", purpose=tiny_sent.gold)
    first, best = (p.generate(tiny_sent.TOPICS, max_new_tokens=10) for p in (plain, ranked))
    golds = [tiny_sent.gold(d.prompts, d.texts) for d in (first, best)]
    assert (golds[1] >= golds[0]).all() and (golds[1] > golds[0]).any()
    assert ranked.cost.reward_calls + ranked.cost.reward_hits == 6 * 8
    same = Beam(width=6).fit(model=TINY, device="cpu", purpose=lambda prompts, completions: [0.0] * len(completions))
    assert same.generate(tiny_sent.TOPICS, max_new_tokens=10).texts == first.texts


def test_it_saves_without_a_purpose_and_names_errors(tmp_path):
    product = Beam(width=3, max_new_tokens=9).fit(model=TINY, device="cpu")
    loaded = load_product(product.save(tmp_path / "beam"))
    assert loaded.strategy == Beam(width=3, max_new_tokens=9)
    assert loaded.generate(PROMPTS).texts == product.generate(PROMPTS).texts
    assert max(product.generate(PROMPTS).lengths - product.generate(PROMPTS).boundaries) <= 9
    with pytest.raises(TelosError, match="out of range"):
        Beam(width=0)
