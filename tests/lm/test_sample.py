"""Sampling against transformers' own greedy search, the softmax, and the log-probs of the trainer."""

import numpy as np
import pytest
import torch
from lm_toys import STORIES, bpe_model, tiny
from scipy import stats

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.lm.log_probs import token_log_probs
from telos.lm.model import load_model
from telos.lm.products import LanguagePolicy
from telos.lm.sample import sample, transformed
from telos.lm.tokens import Sequences, tokenise_prompts

TEXTS = ["the cat sat", "no", "what is the answer? the answer is", "the", "yes, it is a good day to walk in the park"]


def rng(*names):
    return Rng(7).at(*names).torch()


def completion(drawn, row):
    return drawn.tokens[row, drawn.boundaries[row] : drawn.lengths[row]].tolist()


def greedy_of_transformers(model, prompt, new):
    ids = torch.from_numpy(prompt)[None]
    out = model.network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0,
        eos_token_id=model.eos_id, top_k=None, top_p=None, temperature=None,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def models():
    yield pytest.param(lambda: (bpe_model(), TEXTS), id="random")
    yield pytest.param(lambda: (tiny(), [f"topic{i} good{i}" * (i < 3) or f"topic{i}" for i in range(8)]), id="tiny")
    absent = pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260k model is not here")
    stories = ["Once upon a time", "Lily", "The dog ran to the park and", "One day, a little girl"]
    yield pytest.param(lambda: (load_model(STORIES), stories), id="stories260k", marks=absent)


@pytest.mark.parametrize("make", models())
def test_greedy_is_that_of_transformers_in_batches_of_unequal_prompts(make):
    model, texts = make()
    prompts = tokenise_prompts(model, texts, 24)
    assert len({len(p) for p in prompts}) > 1
    drawn = sample(model, prompts, rng=rng("greedy"), max_new_tokens=24, temperature=0)
    for row, prompt in enumerate(prompts):
        assert completion(drawn, row) == greedy_of_transformers(model, prompt, 24)
        assert drawn.tokens[row, : len(prompt)].tolist() == prompt.tolist()
        alone = sample(model, [prompt], rng=rng("other"), max_new_tokens=24, temperature=0)
        assert completion(alone, 0) == completion(drawn, row)
    assert (drawn.log_probs == 0).all()  # a certain choice


@pytest.mark.parametrize("make", models())
def test_stored_log_probs_are_those_of_the_trainer(make):
    model, texts = make()
    prompts = tokenise_prompts(model, texts, 20)
    drawn = sample(model, prompts, n=3, rng=rng("stored"), max_new_tokens=20, batch_size=7)
    sequences = Sequences(drawn.tokens, drawn.lengths, drawn.boundaries)
    with torch.no_grad():
        values = token_log_probs(model, sequences)
    assert (drawn.log_probs - values).abs().max() < 1e-4
    assert (drawn.log_probs[sequences.mask] < 0).all() and (drawn.log_probs[~sequences.mask] == 0).all()


def test_first_tokens_follow_the_softmax():
    model = bpe_model()
    (prompt,) = tokenise_prompts(model, ["the cat"], 1)
    with torch.no_grad():
        probs = model.network(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1].double().softmax(-1)
    n = 4000
    for temperature in (1.0, 0.7):
        expected = (probs.log() / temperature).softmax(-1).numpy() * n
        drawn = sample(model, [prompt], n=n, rng=rng("chi"), max_new_tokens=1, batch_size=1000, temperature=temperature)
        counts = np.bincount(drawn.tokens[:, -1].numpy(), minlength=330)
        common = expected >= 5
        assert common.sum() > 10
        observed = [*counts[common], counts[~common].sum()]
        assert stats.chisquare(observed, [*expected[common], expected[~common].sum()]).pvalue > 1e-3
        wrong = [*(probs.numpy() ** (0.7 / temperature))[common]]
        wrong = np.array([*wrong, max(1e-9, (probs.numpy() ** (0.7 / temperature))[~common].sum())])
        assert stats.chisquare(observed, wrong / wrong.sum() * n).pvalue < 1e-6  # another temperature is told apart


def test_later_tokens_follow_the_softmax_too():
    """Two steps from a two-token support: the joint frequencies are the products of the conditionals."""
    model = bpe_model()
    (prompt,) = tokenise_prompts(model, ["the"], 2)
    n = 3000
    drawn = sample(model, [prompt], n=n, rng=rng("joint"), max_new_tokens=2, top_k=2, batch_size=1000)
    pairs = drawn.tokens[:, len(prompt) :]
    seen, counts = pairs.unique(dim=0, return_counts=True)
    expected = []
    for pair in seen:
        total = 0.0
        for step in range(2):
            ids = torch.cat([torch.from_numpy(prompt), pair[:step]])[None]
            with torch.no_grad():
                log_probs = transformed(model.network(input_ids=ids).logits[:, -1].float(), top_k=2)[0]
            total += float(log_probs[pair[step]])
            if pair[step] == model.eos_id:
                break
        expected.append(np.exp(total) * n)
    assert sum(expected) == pytest.approx(n, rel=1e-4) and len(seen) >= 3
    assert stats.chisquare(counts.numpy(), expected, sum_check=False).pvalue > 1e-3


def test_transform_keeps_the_right_tokens_and_renormalises():
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    assert torch.allclose(transformed(logits).exp(), torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    assert torch.allclose(transformed(logits, top_k=2).exp(), torch.tensor([[2 / 3, 1 / 3, 0, 0]]))
    assert torch.allclose(transformed(logits, top_k=99).exp(), logits.exp())
    # The smallest set of mass >= p: one token for 0.5, two for 0.51 and 0.75.
    assert transformed(logits, top_p=0.499).exp().tolist() == [[1, 0, 0, 0]]
    assert torch.allclose(transformed(logits, top_p=0.51).exp(), torch.tensor([[2 / 3, 1 / 3, 0, 0]]))
    assert torch.allclose(transformed(logits, top_p=0.74).exp(), torch.tensor([[2 / 3, 1 / 3, 0, 0]]))
    assert torch.allclose(transformed(logits, top_p=0.8).exp(), torch.tensor([[0.5, 0.25, 0.15, 0]]) / 0.9, atol=1e-6)
    tempered = torch.tensor([[0.25, 0.0625, 0.0225, 0.01]]) / 0.345
    assert torch.allclose(transformed(logits, temperature=0.5).exp(), tempered)
    assert transformed(logits, temperature=0).exp().tolist() == [[1, 0, 0, 0]]
    assert transformed(torch.tensor([[1.0, 3.0, 3.0]]), temperature=0).exp().tolist() == [[0, 1, 0]]  # the first
    both = transformed(logits, top_k=3, top_p=0.6).exp()  # top-p sees what top-k left: 0.556, 0.278, 0.167
    assert torch.allclose(both, torch.tensor([[2 / 3, 1 / 3, 0, 0]]))


def test_counts_flags_and_the_end_token():
    model = tiny()
    drawn = LanguagePolicy(model).generate(["topic1", "topic2"], n=100, rng=rng("flags"), max_new_tokens=12)
    ends = drawn.tokens[torch.arange(200), drawn.lengths - 1] == model.eos_id
    assert torch.equal(drawn.finished, ends) and 0 < ends.float().mean() < 1
    for row in range(200):
        ids = completion(drawn, row)
        assert ids.count(model.eos_id) == int(drawn.finished[row])  # the end token counts, nothing follows it
        assert 1 <= len(ids) <= 12 and (drawn.finished[row] or len(ids) == 12)
        assert len(drawn.texts[row].split()) == len(ids) - int(drawn.finished[row])
    assert drawn.prompts == ["topic1"] * 100 + ["topic2"] * 100
    assert (drawn.tokens[:100, 1] == model.tokenizer.convert_tokens_to_ids("topic1")).all()
    assert (drawn.boundaries == 2).all()


def test_one_generator_gives_one_result():
    policy = LanguagePolicy(tiny())
    first, again, other = (
        policy.generate(["topic1", "topic2"], n=4, rng=rng(name), max_new_tokens=12) for name in ("a", "a", "b")
    )
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.log_probs, again.log_probs)
    assert first.texts != other.texts
    state = torch.random.get_rng_state()
    policy.generate(["topic1"], rng=rng("a"), max_new_tokens=4)
    assert torch.equal(state, torch.random.get_rng_state())


def test_prompts_longer_than_the_context_are_cut():
    model = bpe_model()
    long = " ".join(["the cat sat on the mat"] * 20)
    drawn = LanguagePolicy(model).generate([long, "no"], rng=rng("cut"), max_new_tokens=10)
    assert int(drawn.boundaries[0]) == 54 and int(drawn.lengths.max()) <= 64 and drawn.tokens[0, 0] == 1
    assert int(drawn.boundaries[1]) == len(tokenise_prompts(model, ["no"], 10)[0])


def test_bad_options_are_errors():
    policy = LanguagePolicy(bpe_model())
    with pytest.raises(TelosError, match="no option 'beams'"):
        policy.generate(["the"], rng=rng(), beams=3)
    with pytest.raises(TelosError, match="needs a generator"):
        policy.generate(["the"])
    for bad in ({"top_p": 0.0}, {"top_p": 1.5}, {"temperature": -1}, {"top_k": -1}, {"max_new_tokens": 0}, {"n": 0}):
        with pytest.raises(TelosError, match="out of range"):
            policy.generate(["the"], rng=rng(), **{"max_new_tokens": 4, **bad})
    with pytest.raises(TelosError, match="no room for a prompt"):
        policy.generate(["the"], rng=rng(), max_new_tokens=64)
    with pytest.raises(TelosError, match="too long"):
        policy.generate([np.ones(60, np.int64)], rng=rng(), max_new_tokens=10)
    with pytest.raises(TelosError, match="no prompts"):
        policy.generate([], rng=rng(), max_new_tokens=4)


def test_log_prob_of_sampled_texts_is_the_samplers():
    policy = LanguagePolicy(tiny())
    drawn = policy.generate(["topic3"], n=20, rng=rng("texts"), max_new_tokens=22)
    done = [i for i in range(20) if drawn.finished[i]]
    values = policy.log_prob(["topic3"] * len(done), [" " + drawn.texts[i] for i in done])
    assert len(done) > 10
    assert torch.allclose(values, drawn.log_probs.sum(-1)[done], atol=1e-4)
