"""The combinations with numbers, what seeds change, and the ensemble as a scorer and as a purpose."""

import json

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Preferences
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.methods.reward_models.rm_ensembles import RewardEnsemble, RMEnsembles, combine, moments, standardise
from telos.worlds import tiny_sent

SCORES = torch.randn((5, 40), generator=Rng(1000).torch())
OBJECTIVES = ("mean", "wco", "uwo")
MEMBER = use("reward_model", learning_rate=2e-3, batch_size=16)


def test_by_hand():
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, -6.0]])
    assert combine(scores, "mean").tolist() == [3.0, -2.0]
    assert combine(scores, "wco").tolist() == [1.0, -6.0]
    # Population variances 8/3 and 8; divided by k - 1 they would be 4 and 12.
    assert combine(scores, "uwo", 0.5).tolist() == pytest.approx([3 - 4 / 3, -6.0])


@pytest.mark.parametrize("scores", [SCORES[:1], SCORES[:1].expand(4, -1)])
def test_one_member_or_identical_ones_are_that_member(scores):
    for objective in OBJECTIVES:
        assert torch.allclose(combine(scores, objective, 0.7), SCORES[0], atol=1e-6)


def test_order_of_the_objectives():
    mean = combine(SCORES, "mean")
    assert (combine(SCORES, "wco") < mean).all() and (combine(SCORES, "uwo", 0.1) < mean).all()
    assert torch.equal(combine(SCORES, "uwo", 0.0), mean)
    assert (combine(SCORES, "uwo", 0.5) < combine(SCORES, "uwo", 0.1)).all()


def test_shift_scale_and_order_of_members():
    for objective in OBJECTIVES:
        plain = combine(SCORES, objective, 0.5)
        assert torch.allclose(combine(SCORES + 3, objective, 0.5), plain + 3, atol=1e-5)
        assert torch.allclose(combine(SCORES[[3, 1, 4, 0, 2]], objective, 0.5), plain, atol=1e-6)
    for objective in ("mean", "wco"):
        assert torch.allclose(combine(2 * SCORES, objective), 2 * combine(SCORES, objective), atol=1e-6)
    penalty = combine(SCORES, "mean") - combine(SCORES, "uwo", 0.5)
    scaled = combine(2 * SCORES, "mean") - combine(2 * SCORES, "uwo", 0.5)
    assert torch.allclose(scaled, 4 * penalty, atol=1e-5)


def test_standardised_scores_have_mean_0_and_deviation_1():
    raw = (
        SCORES * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])[:, None] + torch.tensor([0.0, -100.0, 5.0, 1.0, 2.0])[:, None]
    )
    scores = standardise(raw, *moments(raw))
    assert torch.allclose(scores.mean(-1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(scores.std(-1, correction=0), torch.ones(5), atol=1e-5)
    # Without it the minimum is one member's, whatever the others say.
    assert torch.equal(combine(raw, "wco"), raw[1]) and not torch.allclose(combine(scores, "wco"), scores[1])
    constant = torch.ones(1, 7)
    assert torch.equal(standardise(constant, *moments(constant)), torch.zeros(1, 7))


def pairs(count=96):
    rng = Rng(1000)
    prompts, first = tiny_sent.sentences(count, rng.at("a").numpy(), positive_odds=1.5)
    _, second = tiny_sent.sentences(count, rng.at("b").numpy(), positive_odds=-1.5)
    return Preferences(prompts, [f" {text}" for text in first], [f" {text}" for text in second])


@pytest.fixture(scope="module")
def ensemble():
    return RMEnsembles(member=MEMBER, members=3).fit(pairs(), model=TINY, steps=20, device="cpu")


HELD = tiny_sent.sentences(60, Rng(1005).at("held").numpy())


def held():
    return HELD[0], [f" {text}" for text in HELD[1]]


def test_members_agree_on_what_they_learnt_and_differ_in_the_rest(ensemble):
    scores = ensemble.each(lambda member: member.score(*held()))
    correlation = torch.corrcoef(scores)
    assert (correlation > 0.4).all() and (correlation - torch.eye(3) < 0.999).all()
    gold = torch.from_numpy(tiny_sent.gold(*HELD)).float()
    assert all(torch.corrcoef(torch.stack([gold, own]))[0, 1] > 0.5 for own in [*scores, ensemble.score(*held())])


def test_objectives_of_a_fitted_ensemble(ensemble):
    scores = ensemble.each(lambda member: member.score(*held()))
    assert torch.equal(ensemble.score(*held()), scores.amin(0))
    assert torch.equal(ensemble.using("mean").score(*held()), scores.mean(0))
    assert torch.equal(ensemble.using("uwo", 0.2)(*held()), combine(scores, "uwo", 0.2))
    assert torch.allclose(ensemble.only(1).score(*held()), scores[1], atol=1e-6)
    own = ensemble.standardised(*held()).each(lambda member: member.score(*held()))
    assert torch.allclose(own.mean(-1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(own.std(-1, correction=0), torch.ones(3), atol=1e-5)


def test_it_is_standardised_on_the_training_texts(ensemble):
    data = pairs()
    scores = ensemble.each(lambda member: member.score([*data.prompts] * 2, [*data.chosen, *data.rejected]))
    assert torch.allclose(scores.mean(-1), torch.zeros(3), atol=1e-4)
    assert torch.allclose(scores.std(-1, correction=0), torch.ones(3), atol=1e-4)


def test_a_member_is_a_reward_model_fitted_with_its_own_seed():
    """With heads that start at zero one member differs from another by the order of the pairs only."""
    one, two = RMEnsembles(member=MEMBER, members=2, head_deviation=0.0).fit(pairs(), model=TINY, steps=1).scorers
    assert not torch.equal(one.network.score.weight, two.network.score.weight)
    whole = use("reward_model", learning_rate=2e-3, batch_size=96)
    one, two = RMEnsembles(member=whole, members=2, head_deviation=0.0).fit(pairs(), model=TINY, steps=1).scorers
    assert torch.allclose(one.network.score.weight, two.network.score.weight, atol=1e-5)
    one, two = RMEnsembles(member=whole, members=2).fit(pairs(), model=TINY, steps=1).scorers
    assert (one.network.score.weight - two.network.score.weight).std() > 0.01


def test_sampled_tokens_score_as_their_texts(ensemble):
    drawn = LanguagePolicy(load_model(TINY)).generate(
        [f"topic{i}" for i in range(8)], n=2, rng=Rng(1000).torch(), max_new_tokens=20
    )
    by_text = ensemble.score(drawn.prompts, [f" {text}" for text in drawn.texts])
    assert torch.allclose(ensemble.score_sampled(drawn)[drawn.finished], by_text[drawn.finished], atol=1e-5)
    assert drawn.finished.sum() > 8


def test_the_saved_folder_is_a_purpose_for_selection_and_for_rl(ensemble, tmp_path):
    folder = ensemble.using("uwo", 0.1).save(tmp_path / "ensemble")
    loaded = load_product(folder)
    assert isinstance(loaded, RewardEnsemble) and (loaded.objective, loaded.penalty) == ("uwo", 0.1)
    assert torch.allclose(loaded.score(*held()), ensemble.using("uwo", 0.1).score(*held()), atol=1e-6)
    assert isinstance(load_product(folder / "member1"), RewardScorer)
    best = use("best_of_n", n=8).fit(model=TINY, purpose=str(folder), device="cpu")
    topics = [f"topic{i}" for i in range(8)]
    golds = [
        tiny_sent.gold(d.prompts, d.texts).mean()
        for d in (
            policy.generate(topics, n=4, rng=Rng(1000).torch(), max_new_tokens=20) for policy in (best, best.policy)
        )
    ]
    assert golds[0] > golds[1] + 2
    again = load_product(best.save(tmp_path / "best"))
    assert isinstance(again.purpose, RewardEnsemble)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": topic}) + "\n" for topic in topics))
    for slug in ("rloo", "ppo"):
        method = use(slug, prompts_per_batch=4, max_new_tokens=8)
        assert isinstance(
            method.fit(str(prompts), model=TINY, purpose=str(folder), steps=1, device="cpu"), LanguagePolicy
        )


def test_stages_are_the_members(tmp_path):
    out = tmp_path / "run"
    RMEnsembles(member=MEMBER, members=2).fit(pairs(), model=TINY, steps=3, device="cpu", out=out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["member0", "member1"]
    assert sorted(path.name for path in (out / "stages").iterdir()) == ["member0", "member1"]


@pytest.mark.parametrize("options", [{"members": 0}, {"objective": "max"}, {"penalty": -1.0}, {"head_deviation": -0.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(TelosError, match="out of range"):
        RMEnsembles(**options)


def test_a_member_that_is_no_reward_model_is_refused():
    with pytest.raises(TelosError, match="trains no reward model"):
        RMEnsembles(member=use("dpo")).fit(pairs(), model=TINY, steps=1, device="cpu")
