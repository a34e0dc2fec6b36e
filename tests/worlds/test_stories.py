"""Stories: the bundled real model under real purposes: how gold spreads, and that online methods run on it."""

from pathlib import Path

import numpy as np
import pytest
import torch

import telos
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.model import STORIES, load_model
from telos.lm.products import LanguagePolicy
from telos.methods.language_rl.p3o import P3O
from telos.worlds import stories

SHARED = Path(telos.__file__).parents[3] / "shared" / "data" / "stories260k"


@pytest.fixture(scope="module")
def drawn():
    policy = LanguagePolicy(load_model(STORIES))
    prompts = stories.prompts(192, Rng(0).at("prompts").numpy())
    return policy.generate(prompts, rng=Rng(0).at("samples").torch(), max_new_tokens=stories.TOKENS)


def test_prompts_are_openings_with_names_and_held_out_ones_are_others():
    train = stories.prompts(400, Rng(0).numpy())
    test = stories.prompts(400, Rng(0).numpy(), held_out=True)
    assert train == stories.prompts(400, Rng(0).numpy()) and not set(train) & set(test)
    assert len(set(train)) > 60 and len(set(test)) == len(stories.HELD_OUT) * len(stories.NAMES)
    assert all(any(name in prompt for name in stories.NAMES) and "{}" not in prompt for prompt in train + test)


def test_gold_spreads_on_the_models_own_samples(drawn):
    pytest.importorskip("vaderSentiment", reason="the lexicon is not installed")
    gold = stories.sentiment(drawn.prompts, drawn.texts)
    assert gold.shape == (192,) and np.abs(gold).max() <= 1
    assert 0.1 < gold.mean() < 0.35 and 0.3 < gold.std() < 0.5
    assert 0.1 < (gold == 0).mean() < 0.45 and (gold < -0.2).mean() > 0.05 and (gold > 0.6).mean() > 0.1


def test_the_bundled_model_is_the_published_one():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name} is not beside the project")
    ours, theirs = load_model(STORIES), load_model(SHARED)
    pairs = zip(ours.network.parameters(), theirs.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab() and ours.context == 512


@pytest.mark.parametrize("purpose", ["keywords:happy,play", "length:target=6", "sentiment"])
def test_p3o_on_real_text_runs_saves_and_loads(purpose, tmp_path, drawn):
    if purpose == "sentiment":
        pytest.importorskip("vaderSentiment", reason="the lexicon is not installed")
    seen = []
    method = P3O(prompts_per_batch=8, minibatch_prompts=4, max_new_tokens=10, learning_rate=3e-4)
    prompts = Prompts(stories.prompts(32, Rng(1).numpy()))
    policy = method.fit(
        prompts, model=STORIES, purpose=purpose, steps=2, device="cpu", out=tmp_path / "run",
        evaluate=lambda step, product: seen.append(step) or {}, evaluate_every=1,
    )  # fmt: skip
    assert seen == [1, 2]
    again = telos.load_product(tmp_path / "run")
    texts = [p.generate(["Tom had a toy. But"], rng=Rng(3).torch(), max_new_tokens=8).texts for p in (policy, again)]
    assert texts[0] == texts[1] and texts[0][0]
