"""RA-DPO: relabelling by hand, the goal's text, and learning to deliver what is asked for on the bundled model."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Preferences
from telos.data.scored import ScoredTexts
from telos.lm.log_probs import reference_log_probs, sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.tokens import tokenise
from telos.methods.preferences.dpo import DPO, LOSSES, DPOLearner
from telos.methods.preferences.ra_dpo import (
    RADPO,
    TEMPLATE,
    RADPOLearner,
    goal_prompt,
    goal_reward,
    implicit_scores,
    relabelled,
    shown_score,
)
from telos.ops import preferences
from telos.worlds import tiny_sent

SPARE = "<spare{score}> {prompt}"
OPTIONS = {"beta": 0.3, "learning_rate": 1e-3, "warmup_steps": 0, "batch_size": 32}


def rows(scores, how="both", seed=0):
    array = np.array(scores, dtype=float)
    return relabelled(array[..., None] if array.ndim == 2 else array, how, np.random.default_rng(seed))


def test_n_pairs_become_two_n_without_ties_and_each_goal_prefers_its_own_response():
    scores = [(9, 8), (1, 4), (5, 5), (2.5, 2)]
    found = rows(scores)
    assert sorted(found) == sorted([(0, 0, 0, 1), (0, 1, 1, 0), (1, 1, 1, 0), (1, 0, 0, 1), (3, 0, 0, 1), (3, 1, 1, 0)])
    chosen = Counter((group, better) for group, _, better, _ in found)
    rejected = Counter((group, worse) for group, _, _, worse in found)
    assert chosen == rejected and set(chosen.values()) == {1}
    for group, goal, better, worse in found:
        g, values = np.array([scores[group][goal]]), np.array(scores[group])[:, None]
        assert goal_reward(g, values[better]) == 0 > goal_reward(g, values[worse])


def test_the_goals_reward_is_the_squared_distance_and_constants_change_no_order():
    w, low = np.array([9.0]), np.array([6.5])
    assert goal_reward(w, w) == 0 and goal_reward(w, low) == goal_reward(low, w) == -6.25
    assert goal_reward(np.array([1.0, 2.0]), np.array([4.0, 6.0])) == -25
    scores = np.random.default_rng(1000).integers(0, 6, (40, 3)).astype(float)
    assert rows(scores) == rows(scores + 7.5)


def test_variants_of_relabelling():
    scores = [(9, 8), (1, 4), (5, 3), (2, 6)]
    assert rows(scores, "winner") == [(0, 0, 0, 1), (1, 1, 1, 0), (2, 0, 0, 1), (3, 1, 1, 0)]
    half = rows(scores, "half")
    assert len(half) == 4 and len({group for group, *_ in half}) == 2 and set(half) < set(rows(scores))
    slip = rows(scores, "no_swap")
    assert len(slip) == 8 and {row[2:] for row in slip} == {(0, 1), (1, 0)}
    assert slip[4:] == [(0, 1, 0, 1), (1, 0, 1, 0), (2, 1, 0, 1), (3, 0, 1, 0)]  # the loser's goal, the winner first
    # Three responses give three pairs, six rows.
    assert len(rows([(3, 1, 2)])) == 6 and len(rows([(3, 1, 1)])) == 4


def test_several_attributes_are_vectors():
    found = relabelled(np.array([[[5.0, 1.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]), "both", np.random.default_rng(0))
    assert found == [(0, 0, 0, 1), (0, 1, 1, 0)]
    assert shown_score((5.0, 1.25), decimals=2) == "5, 1.25"


def test_whole_scores_have_no_decimals():
    assert [shown_score(s) for s in (8.0, 8.5, 10, 8.04, -0.01, -2.5)] == ["8", "8.5", "10", "8", "0", "-2.5"]
    assert shown_score(7.6, decimals=0) == "8" and shown_score(20, decimals=0) == "20"
    assert "Overall score: 8." in goal_prompt("Hello?", 8.0) and "Overall score: 8.5." in goal_prompt("Hello?", 8.5)


def test_the_goal_stands_where_it_is_told_to():
    assert goal_prompt("Hello?", 3, "[{score}] {prompt} now") == "[3] Hello? now"
    assert goal_prompt("a {score} {prompt}", 3, "[{score}] {prompt}") == "[3] a {score} {prompt}"
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    user = goal_prompt(chat, 3, "[{score}] {prompt}")
    assert user == [chat[0], {"role": "user", "content": "[3] Hello?"}]
    system = goal_prompt(chat[1:], 9, TEMPLATE, "system")
    assert system[1:] == chat[1:] and system[0]["role"] == "system"
    assert system[0]["content"].endswith("Overall score: 9.")
    with pytest.raises(TelosError, match="user"):
        goal_prompt(chat[:1], 3)


@pytest.fixture(scope="module")
def scored():
    rng = Rng(1000)
    prompts, first = tiny_sent.sentences(96, rng.at("a").numpy())
    _, second = tiny_sent.sentences(96, rng.at("b").numpy())
    texts = [(f" {a}", f" {b}") for a, b in zip(first, second, strict=True)]
    golds = np.array([tiny_sent.gold(prompts, list(column)) for column in (first, second)]).T
    grades = np.clip(np.round(golds + 5), 0, 10)
    return ScoredTexts(prompts, texts, [tuple(map(float, pair)) for pair in grades])


def prepared(data, **options):
    spec = Spec(data, {"model": TINY}, 1, torch.device("cpu"), Rng(0))
    return RADPO(**{**OPTIONS, "template": SPARE, **options}).prepare(spec)


def test_the_goal_is_part_of_the_prompt_and_the_reference_sees_it(scored):
    spec = prepared(scored)
    groups = spec.data
    ties = sum(a == b for a, b in scored.scores)
    assert len(groups) == 2 * (len(scored) - ties) and spec.given["top"] == (max(max(s) for s in scored.scores),)
    names = tiny_sent.vocabulary()
    for prompt, completions in zip(groups.prompts, groups.completions, strict=True):
        assert [names[i] for i in prompt][1].startswith("<spare") and len(prompt) == 3
        assert not any(names[i].startswith("<spare") for ids in completions for i in ids)
    batch = groups.batch(range(16))
    with torch.no_grad():
        again = sequence_log_probs(load_model(TINY), batch.sequences)
    assert torch.allclose(again, batch.reference, atol=1e-4)


def test_where_goals_are_ignored_the_two_halves_cancel_at_the_reference(scored):
    """The template has no {score}: the same prompt for both halves, and the gradient of the mean loss is 0."""
    spec = prepared(scored[:24], template="{prompt}", batch_size=1000)
    model = load_model(TINY)
    sizes = {}
    for how in ("both", "no_swap"):
        groups = prepared(scored[:24], template="{prompt}", relabel=how).data
        batch = groups.batch(range(len(groups)))
        log_probs = sequence_log_probs(model, batch.sequences)
        losses = preferences.sigmoid(preferences.margin(log_probs - batch.reference), 0.3)
        slopes = torch.autograd.grad(losses.mean(), model.trainable())
        sizes[how] = torch.stack([slope.norm() for slope in slopes]).norm().item()
    assert len(spec.data) == len(groups) and sizes["both"] < 1e-4 * sizes["no_swap"]


def test_one_goal_without_relabelling_is_dpo(scored):
    ordered = [(t, s) if s[0] > s[1] else (t[::-1], s[::-1]) for t, s in zip(scored.completions, scored.scores)]
    kept = [(p, t) for p, (t, s) in zip(scored.prompts, ordered, strict=True) if s[0] != s[1]]
    pairs = Preferences([p for p, _ in kept], [t[0] for _, t in kept], [t[1] for _, t in kept])
    plain = tokenise(load_model(TINY), pairs)
    plain = plain.with_reference(reference_log_probs(load_model(TINY), plain))
    spec = prepared(scored, template="{prompt}", relabel="winner")
    assert len(spec.data) == len(plain)
    models = load_model(TINY), load_model(TINY)
    one = DPOLearner(DPO(**OPTIONS), models[0], LOSSES["sigmoid"]).update(plain.batch(range(32)), Rng(0))
    two = RADPOLearner(RADPO(**OPTIONS), models[1], (10.0,)).update(spec.data.batch(range(32)), Rng(0))
    assert float(one["loss"]) == float(two["loss"]) and float(one["grad_norm"]) == float(two["grad_norm"])
    assert all(torch.equal(a, b) for a, b in zip(models[0].trainable(), models[1].trainable(), strict=True))


def test_every_loss_starts_at_its_value_at_the_reference(scored):
    spec = prepared(scored)
    for options, expected in (
        ({}, math.log(2)),
        ({"loss": "cdpo", "label_smoothing": 0.3}, math.log(2)),
        ({"loss": "ipo"}, 1 / (4 * 0.3**2)),
        ({"loss": "hinge"}, 1.0),
    ):
        method = RADPO(**OPTIONS, **options)
        metrics = RADPOLearner(method, load_model(TINY), (10.0,)).update(spec.data.batch(range(32)), Rng(0))
        assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-4)


def test_it_delivers_more_when_more_is_asked_for(scored, tmp_path):
    policy = RADPO(**OPTIONS, template=SPARE).fit(scored, model=TINY, steps=60, device="cpu")
    loaded = telos.load_product(policy.save(tmp_path / "policy"))
    topics = list(tiny_sent.TOPICS) * 8

    def gold(goal):
        drawn = loaded.generate(topics, goal=goal, rng=Rng(1000).torch(), max_new_tokens=21)
        return tiny_sent.gold(drawn.prompts, drawn.texts).mean()

    low, high = gold(1), gold(8)
    assert high > low + 1.5
    top = loaded.generate(topics[:4], temperature=0)
    named = loaded.generate(topics[:4], goal=loaded.top, temperature=0)
    ids = LanguagePolicy(loaded.model).generate([loaded.prompt(p) for p in topics[:4]], temperature=0)
    assert top.texts == named.texts == ids.texts and loaded.top == [max(max(s) for s in scored.scores)]
    # A text that only the top request draws is likelier there.
    texts = [f" {text}" for text in top.texts]
    found = {goal: loaded.log_prob(topics[:4], texts, goal=goal) for goal in (None, 1, 8)}
    asked = [loaded.prompt(topic, 8) for topic in topics[:4]]
    assert torch.equal(found[8], LanguagePolicy(loaded.model).log_prob(asked, texts))
    assert torch.equal(found[None], loaded.log_prob(topics[:4], texts, goal=loaded.top))
    assert (found[None] > found[1]).all()


def test_implicit_scores_are_those_of_the_policy(scored):
    pairs = Preferences(scored.prompts, [t[0] for t in scored.completions], [t[1] for t in scored.completions])[:16]
    policy = DPO(**OPTIONS).fit(pairs, model=TINY, steps=5, device="cpu")
    found = implicit_scores(pairs, policy, TINY, beta=0.3)
    groups = tokenise(load_model(TINY), pairs)
    ratios = reference_log_probs(policy.model, groups) - reference_log_probs(load_model(TINY), groups)
    assert torch.allclose(torch.tensor(found.scores), 0.3 * ratios, atol=1e-4)
    assert ratios[:, 0].mean() > ratios[:, 1].mean()
    with pytest.raises(TelosError, match="implicit"):
        implicit_scores(Preferences([None], ["a b"], ["a c"]), policy, TINY, beta=0.3)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"relabel": "no"},
        {"loss": "no"},
        {"label_smoothing": 0.2},
        {"template": "no place"},
        {"template": "{prompt} {prompt}"},
        {"place": "no"},
        {"place": "system", "template": "{prompt} {score}"},
        {"decimals": -1},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(TelosError):
        RADPO(**options)


def test_data_that_say_nothing_are_refused(scored):
    ties = ScoredTexts(scored.prompts, scored.completions, [(1.0, 1.0)] * len(scored))
    with pytest.raises(TelosError, match="differ"):
        prepared(ties)
    implicit = ScoredTexts([None] * len(scored), scored.completions, scored.scores)
    with pytest.raises(TelosError, match="implicit"):
        prepared(implicit)
