"""SFT: its loss is the mean token NLL, it lowers it, and of pairs it learns the chosen texts."""

import numpy as np
import pytest
import torch

from telos.core.rng import Rng
from telos.data.records import Demonstrations, Preferences
from telos.lm.model import TINY, load_model
from telos.lm.tokens import tokenise
from telos.methods.preferences.sft import SFT, SFTLearner
from telos.worlds import tiny_sent


def sentences(n=48, **tilt):
    prompts, texts = tiny_sent.sentences(n, Rng(1000).at("sft").numpy(), **tilt)
    return Demonstrations(prompts, [" " + text for text in texts])


def nll(model, data):
    """Mean over all completion tokens, one text and one token at a time."""
    values = []
    for prompt, text in zip(data.prompts, data.completions, strict=True):
        head = model.tokenizer(prompt)["input_ids"]
        whole = [*model.tokenizer(prompt + text)["input_ids"], model.eos_id]
        with torch.no_grad():
            log_probs = model.network(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        values += [-log_probs[t - 1, whole[t]].item() for t in range(len(head), len(whole))]
    return float(np.mean(values))


def test_loss_is_the_mean_over_tokens_whatever_the_parts():
    data = sentences(12)
    expected = nll(load_model(TINY), data)
    for micro in (1, 5, 12):
        model = load_model(TINY)
        groups = tokenise(model, data)
        metrics = SFTLearner(SFT(), model).update(groups.batch(range(12)), Rng(0), micro)
        assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-4)
    lengths = [len(text.split()) for text in data.completions]
    assert len(set(lengths)) > 1  # else a mean of means would pass too


def test_it_lowers_the_nll_and_the_policy_shifts():
    tilted = sentences(320, positive_odds=1.5)
    data, held = tilted[:280], tilted[280:]
    before, before_held = nll(load_model(TINY), data[:40]), nll(load_model(TINY), held)
    policy = SFT(learning_rate=1e-3, batch_size=56).fit(data, model=TINY, steps=20, device="cpu")
    assert nll(policy.model, data[:40]) < before - 0.05 and nll(policy.model, held) < before_held - 0.05


def test_of_pairs_it_learns_the_chosen_and_an_implicit_prompt_is_not_learnt():
    explicit = Preferences(["topic1"] * 2, [" good1 good2", " good3"], [" bad1", " bad2 bad3"])
    implicit = Preferences([None] * 2, ["topic1 good1 good2", "topic1 good3"], ["topic1 bad1", "topic1 bad2 bad3"])
    demonstrations = Demonstrations(["topic1"] * 2, [" good1 good2", " good3"])
    method = SFT(learning_rate=1e-3)
    products = [method.fit(d, model=TINY, steps=3, device="cpu") for d in (explicit, implicit, demonstrations)]
    first, *others = (list(p.network.state_dict().values()) for p in products)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
