"""RSO: the dossier's five checks and its traps with numbers, theorem 1, the sources of pairs, and that it learns."""

import dataclasses
import json
import math

import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Preferences, Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.rounds import JudgeSource
from telos.methods.preferences.dpo import DPO, sigmoid_loss
from telos.methods.preferences.rso import LOSSES, RSO, Candidates, acceptance_rate, point_wise, scaled, selected
from telos.ops import pairs, preferences
from telos.worlds import bit_strings, tiny_sent

SMALL = {
    "candidates": 16, "num_samples": 4, "temperature": 1.0, "top_k": 0, "learning_rate": 1e-3, "max_new_tokens": 16,
    "batch_size": 16, "gamma": 0.3,
}  # fmt: skip
PROMPTS = Prompts([f"topic{i % 8}" for i in range(24)])


def good(prompts, completions):
    """Good words less bad words, and a trifle for the length so that few tie."""
    return [text.count("good") - text.count("bad") + 0.01 * len(text.split()) for text in completions]


class Longer:
    """An oracle: more words are preferred, by Bradley-Terry with half the difference."""

    origin = "in memory"

    def prefers(self, prompts, first, second):
        return [1 / (1 + math.exp(-(len(a.split()) - len(b.split())) / 2)) for a, b in zip(first, second)]


def normal(*shape, name="x"):
    return torch.randn(shape, generator=Rng(3).at(name).torch(), dtype=torch.float64)


def keep(rewards, fresh=None, seed=0, reject=True, **options):
    fresh = torch.ones(len(rewards), dtype=torch.bool) if fresh is None else fresh
    return selected(rewards, fresh, RSO(**options), Rng(seed).torch(), reject=reject)


# Which candidates are kept: checks 1, 2, 3 and the traps. The routine itself has its tests in ops.


def test_a_large_beta_takes_the_first_and_a_small_one_the_highest():
    rewards = normal(64)
    top = set(rewards.topk(8).indices.tolist())
    for seed in range(10):
        assert set(keep(rewards, seed=seed, beta=1e9).tolist()) == set(range(8))
        for beta in (1e-9, 0.0):
            assert set(keep(rewards, seed=seed, beta=beta).tolist()) == top
    assert set(keep(rewards, reject=False).tolist()) == set(range(8))
    # Where all are equal, the greedy limit takes the first, too.
    assert set(keep(torch.zeros(64), beta=0.0).tolist()) == set(range(8))


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_a_constant_added_to_the_rewards_changes_nothing(beta):
    rewards = normal(64)
    for seed in range(10):
        assert torch.equal(keep(rewards, seed=seed, beta=beta), keep(rewards + 32, seed=seed, beta=beta))


def test_the_first_of_two_is_accepted_with_its_probability():
    rewards = torch.tensor([0.0, math.log(2)], dtype=torch.float64)
    first = [pairs.rejection_sample(rewards, 1.0, 1, Rng(seed).torch()).item() == 0 for seed in range(3000)]
    assert sum(first) / 3000 == pytest.approx(0.5, abs=0.03)
    assert all(pairs.rejection_sample(rewards.flip(0), 1.0, 1, Rng(seed).torch()).item() == 0 for seed in range(50))


def test_the_maximum_is_that_of_what_is_left_after_each_pass():
    # With r_max fixed at 20, the others would have a chance of e^-10 at most: no second pass would ever end.
    rewards = torch.tensor([9.0, 20.0, 10.0, 0.0], dtype=torch.float64)
    first = []
    for seed in range(2000):
        kept = pairs.rejection_sample(rewards, 1.0, 2, Rng(seed).torch()).tolist()
        assert kept[0] == 1
        first.append(kept[1] == 0)
    # The second pass reaches candidate 0 before the maximum, candidate 2, and takes it with e^-1.
    assert sum(first) / 2000 == pytest.approx(math.exp(-1), abs=0.035)


def test_within_a_pass_the_maximum_stays_though_it_was_accepted():
    # 20 comes first; were the maximum recomputed at once, the 10 behind it would always be accepted second.
    rewards = torch.tensor([20.0, 10.0, 19.0], dtype=torch.float64)
    second = [pairs.rejection_sample(rewards, 1.0, 2, Rng(seed).torch()).tolist()[1] == 2 for seed in range(2000)]
    # Accepted in the first pass (e^-1); in the second pass otherwise, where the 10 comes first but has e^-9.
    assert sum(second) > 1990


def test_the_acceptance_rate_of_theorem_1():
    texts = bit_strings.strings(6)
    log_sft, generator = bit_strings.chain(texts, 0.6), Rng(5).torch()
    rewards = texts @ normal(6, name="w")
    for beta in (0.3, 1.0, 5.0):
        exact = acceptance_rate(log_sft, rewards, beta).item()
        by_hand = (log_sft.exp() * ((rewards - rewards.max()) / beta).exp()).sum().item()
        assert exact == pytest.approx(by_hand)
        candidates = bit_strings.draw(log_sft, 3000, generator)
        # All that pass 1 accepts stands in increasing order at the beginning; pass 2 begins anew.
        kept = pairs.rejection_sample(rewards[candidates], beta, 3000, generator)
        passed = int((kept.diff() < 0).nonzero()[0]) + 1
        assert passed / 3000 == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 3000))
        # And they follow the optimum.
        shares = torch.bincount(candidates[kept[:passed]], minlength=64) / passed
        optimum = bit_strings.tilted(log_sft, rewards / beta).exp()
        assert (shares - optimum).abs().sum() / 2 < 0.6 * math.sqrt(64 / passed)
    assert acceptance_rate(log_sft, rewards, 1e12).item() == pytest.approx(1.0)
    least = log_sft[rewards == rewards.max()].logsumexp(0).exp().item()
    assert acceptance_rate(log_sft, rewards, 1e-6).item() == pytest.approx(least)


def test_what_is_kept_stands_in_random_order():
    # Else the pairs of the first round would be of neighbours in reward: the best of 8 was accepted early.
    rewards = torch.arange(64.0)
    places = [keep(rewards, seed=seed, beta=1e-9).tolist().index(63) for seed in range(2000)]
    counts = torch.bincount(torch.tensor(places), minlength=8) / 2000
    assert (counts - 1 / 8).abs().max() < 0.03


def test_equal_texts_count_once():
    rewards, fresh = torch.tensor([1.0, 9.0, 1.0, 5.0, 9.0]), torch.tensor([True, True, False, True, False])
    assert sorted(keep(rewards, fresh, num_samples=2, beta=1e-9).tolist()) == [1, 3]
    assert sorted(keep(rewards, fresh, num_samples=4, beta=1.0).tolist()) == [0, 1, 3]
    assert sorted(keep(rewards, fresh, num_samples=4, reject=False).tolist()) == [0, 1, 3]


# Checks 4 and 5: losses and rankings.


def test_hinge_norm_is_nothing_beyond_its_margin():
    reference = normal(3, 2, name="r") - 20
    method = RSO(loss="hinge_norm", gamma=0.05)
    for h, loss, slope in ((19.0, 0.05, 0.05), (20.5, 0.0, 0.0), (-4.0, 1.2, 0.05)):
        log_probs = (reference + torch.tensor([h, 0.0])).requires_grad_()
        value = LOSSES["hinge_norm"](log_probs, reference, method)
        assert torch.allclose(value, torch.full((3,), loss, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(value.sum(), log_probs)
        assert torch.allclose(gradient, torch.tensor([-slope, slope], dtype=torch.float64).expand(3, 2))


def test_sigmoid_norm_is_dpo_where_gamma_is_beta():
    log_probs, reference = normal(9, 2, name="a").requires_grad_(), normal(9, 2, name="b")
    own = LOSSES["sigmoid_norm"](log_probs, reference, RSO(gamma=0.3, beta=7.0))
    dpo = sigmoid_loss(preferences.anchored(log_probs, (1.0, reference)), DPO(beta=0.3))
    assert torch.equal(own, dpo)
    assert torch.equal(*(torch.autograd.grad(v.sum(), log_probs)[0] for v in (own, dpo)))


def test_hinge_is_hinge_norm_where_the_reference_is_indifferent():
    log_probs, level = normal(9, 2, name="a"), normal(9, 1, name="b")
    method = RSO(gamma=0.7)
    own = LOSSES["hinge"](log_probs, normal(9, 2, name="c"), method)
    assert torch.allclose(own, LOSSES["hinge_norm"](log_probs, level.expand(9, 2), method))
    assert not torch.allclose(own, LOSSES["hinge_norm"](log_probs, normal(9, 2, name="c"), method))


def test_slic_is_the_calibration_with_its_own_margin_and_the_sft_term():
    log_probs = torch.tensor([[-3.0, -5.0, -11.0], [-9.0, -4.0, -11.0]], dtype=torch.float64)
    method = RSO(loss="slic", gamma=0.25, sft_weight=0.5)
    # delta = 4: max(0, 4 - 2) and max(0, 4 + 5), and half of 11 (or of the preferred one) nats.
    assert LOSSES["slic"](log_probs, log_probs, method).tolist() == pytest.approx([2 + 5.5, 9 + 5.5])
    assert LOSSES["slic"](log_probs[:, :2], log_probs[:, :2], method).tolist() == pytest.approx([2 + 1.5, 9 + 4.5])
    free = dataclasses.replace(method, sft_weight=0.0)
    two = log_probs[:, :2]
    assert torch.equal(0.25 * LOSSES["slic"](log_probs, log_probs, free), LOSSES["hinge"](two, two, free))


def test_first_round_has_four_pairs_of_eight_and_the_tournament_seven():
    rewards = normal(1, 8)
    disjoint = pairs.independent(pairs.bradley_terry(rewards))
    assert sorted(disjoint[:, 1:].flatten().tolist()) == list(range(8))
    ladder = pairs.tournament(pairs.bradley_terry(rewards))
    assert len(ladder) == 7 and (ladder[:, 1] == rewards.argmax()).sum() == 3
    for found in (disjoint, ladder):
        assert (rewards[0][found[:, 1]] > rewards[0][found[:, 2]]).all()


# A pairwise judge, and the comparators.


def test_a_pairwise_judge_becomes_a_reward_by_a_baseline():
    texts = ["a", "a b c", "a b", "a b c d e f"]
    rewards = point_wise(Longer(), ["x"] * 4, texts, ["a b"] * 4)
    assert rewards.tolist() == pytest.approx([-0.5, 0.5, 0.0, 2.0], abs=1e-5)

    class Certain:
        def prefers(self, prompts, first, second):
            return [float(a > b) if a != b else 0.5 for a, b in zip(first, second)]

    assert point_wise(Certain(), ["x"] * 3, ["b", "c", "a"], ["b"] * 3).tolist() == pytest.approx(
        [0.0, 13.8155, -13.8155], abs=1e-3
    )


def test_raft_takes_the_best_and_rest_those_above_the_threshold():
    rewards = torch.tensor([0.0, 8.0, 7.0, 10.0, 7.1, 10.0])
    assert keep(rewards, loss="raft").tolist() == [3]
    assert keep(rewards, loss="rest").tolist() == [1, 3, 4, 5]
    assert keep(3 * rewards - 40, loss="rest").tolist() == [1, 3, 4, 5]
    fresh = torch.tensor([True, True, True, False, True, True])
    assert keep(rewards, fresh, loss="raft").tolist() == [5]
    assert keep(torch.ones(4), loss="rest").tolist() == [] and scaled(torch.ones(4)).tolist() == [0.0] * 4


def sampled(purpose=good, data=PROMPTS, **options):
    """What the sampling stage keeps for the first eight prompts."""
    method = RSO(**{**SMALL, **options})
    given = {"model": TINY, "purpose": purpose}
    spec = method.prepare(Spec(data, given, 1, torch.device("cpu"), Rng(0)))
    return Candidates(spec, method).judged(LanguagePolicy(spec.given["model"]), range(8)), spec.given["model"]


def test_what_is_kept_has_its_rewards_chances_and_reference_log_probs():
    judged, model = sampled()
    assert judged.scores.shape == (8, 4) and torch.allclose(judged.prefers, pairs.bradley_terry(judged.scores))
    whole = judged.sequences
    rows = zip(whole.flat().tokens, whole.flat().boundaries, whole.flat().lengths, strict=True)
    texts = model.tokenizer.batch_decode([t[a:b].tolist() for t, a, b in rows], skip_special_tokens=True)
    assert judged.scores.flatten().tolist() == pytest.approx(good(None, texts), abs=1e-5)
    with torch.no_grad():
        assert torch.allclose(judged.reference, sequence_log_probs(model, whole), atol=1e-4)
    assert torch.equal(judged.current, judged.reference)
    greedy, plain = (sampled(beta=beta)[0].scores.mean() for beta in (1e-9, 1e9))
    assert greedy > judged.scores.mean() > plain


def test_an_oracle_ranks_by_itself_and_accepts_by_its_logits():
    judged, _ = sampled(Longer(), beta=1e-9)
    words, plain = (
        (found.sequences.lengths - found.sequences.boundaries).float().mean()
        for found in (judged, sampled(Longer(), beta=1e9)[0])
    )
    assert words > plain + 1
    # Longer's logits are half the difference in words, to the baseline as to each other.
    gaps = judged.prefers.logit()
    assert torch.allclose(gaps, judged.scores[:, :, None] - judged.scores[:, None, :], atol=1e-3)


def test_only_ranked_samples_need_no_reward_of_an_oracle():
    asked = []

    class Counting(Longer):
        def prefers(self, prompts, first, second):
            asked.append(len(prompts))
            return super().prefers(prompts, first, second)

    sampled(Counting(), pairs="sft_sample_rank")
    assert asked == [8 * 6] * 2  # the pairs of four, in both orders
    asked.clear()
    sampled(Counting())
    assert asked == [8 * 16] * 2 + [8 * 6] * 2


def test_too_few_distinct_candidates_are_all_taken_and_it_is_said_once(capsys):
    method = RSO(**{**SMALL, "temperature": 0.2, "top_k": 2, "max_new_tokens": 2, "num_samples": 16, "judge_batch": 4})
    spec = method.prepare(Spec(PROMPTS, {"model": TINY, "purpose": good}, 1, torch.device("cpu"), Rng(0)))
    source, policy = JudgeSource(Candidates(spec, method), 4), LanguagePolicy(spec.given["model"])
    batches = [source.next(lambda: policy, Rng(0)) for _ in range(3)]
    said = capsys.readouterr().err
    assert said.count("distinct candidates") == 1 and "num_samples=16" in said
    for judged in batches:
        present = judged.sequences.lengths > judged.sequences.boundaries
        assert present.any(1).all() and not present.all()
        assert (judged.prefers[~(present[:, :, None] & present[:, None, :])] == 0.5).all()
        kept = [
            {tuple(t[a:b].tolist()) for t, a, b in zip(*row) if b > a}
            for row in zip(judged.sequences.tokens, judged.sequences.boundaries, judged.sequences.lengths)
        ]
        assert [len(texts) for texts in kept] == present.sum(1).tolist()


# Training.


def rows_of(data):
    return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(data.prompts, data.chosen, data.rejected)]


@pytest.fixture(scope="module")
def human():
    rng = Rng(1000)
    prompts, first = tiny_sent.sentences(48, rng.at("a").numpy())
    _, second = tiny_sent.sentences(48, rng.at("b").numpy())
    both = [sorted((f" {a}", f" {b}"), key=lambda text: -good(None, [text])[0]) for a, b in zip(first, second)]
    return Preferences(prompts, [a for a, _ in both], [b for _, b in both])


def gold(policy):
    drawn = policy.generate(
        [f"topic{i % 8}" for i in range(256)], rng=Rng(9).torch(), max_new_tokens=21, batch_size=256
    )
    return sum(good(None, drawn.texts)) / 256


@pytest.mark.parametrize(
    "options",
    [
        {}, {"loss": "hinge_norm", "ranking": "tournament"}, {"loss": "hinge"}, {"pairs": "sft_sample_rank"},
        {"loss": "raft"}, {"loss": "rest"}, {"loss": "slic", "targets": "answer"}, {"loss": "slic"},
    ],
    ids=str,
)  # fmt: skip
def test_it_learns_what_the_purpose_wants(options):
    prompts = dataclasses.replace(PROMPTS, columns={"answer": [" good1 word2 good3"] * 24})
    policy = RSO(**SMALL, **options).fit(prompts, model=TINY, purpose=good, steps=30, device="cpu")
    before = gold(LanguagePolicy(load_model(TINY)))
    assert gold(policy) > before + 0.5


def test_targets_are_imitated():
    prompts = dataclasses.replace(PROMPTS, columns={"answer": [" good1 word2 good3"] * 24})
    method = RSO(**{**SMALL, "loss": "slic", "sft_weight": 1.0, "targets": "answer"})
    policy = method.fit(prompts, model=TINY, purpose=good, steps=30, device="cpu")
    ask, answer = ["topic1"], [" good1 word2 good3"]
    before, after = (float(p.log_prob(ask, answer)) for p in (LanguagePolicy(load_model(TINY)), policy))
    assert after > before + 3
    with pytest.raises(TelosError, match="no_such"):
        dataclasses.replace(method, targets="no_such").fit(prompts, model=TINY, purpose=good, steps=1)


def test_pairs_as_given_and_pairs_for_their_prompts(human, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(human)))
    options = {"learning_rate": 1e-3, "gamma": 0.3, "batch_size": 16}
    before = gold(LanguagePolicy(load_model(TINY)))
    for pairs_of in ("auto", "direct"):
        policy = RSO(pairs=pairs_of, **options).fit(file, model=TINY, steps=24, device="cpu")
        assert gold(policy) > before + 0.5
    out = tmp_path / "run"
    RSO(**{**SMALL, "judge_batch": 16}).fit(file, model=TINY, purpose=good, steps=2, out=out, device="cpu")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("sample", 3), ("train", 2)]
    assert telos.load_product(out / "product").provenance["method"] == "rso"
    with pytest.raises(TelosError, match="implicit"):
        implicit = Preferences([None], ["a b"], ["a c"])
        RSO(**SMALL).fit(implicit, model=TINY, purpose=good, steps=1)


class Failing:
    """The purpose, which fails at its third call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, prompts, completions):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("no more")
        return good(prompts, completions)


def test_stopped_in_the_middle_of_sampling_it_resumes_there(tmp_path):
    method, given = RSO(**{**SMALL, "judge_batch": 5}), {"model": TINY, "steps": 4, "device": "cpu"}
    whole = method.fit(PROMPTS, purpose=good, **given)
    with pytest.raises(TelosError, match="no more"):
        method.fit(PROMPTS, purpose=Failing(), out=tmp_path / "run", checkpoint_every=1, **given)
    calls = []

    def counted(prompts, completions):
        calls.append(len(completions))
        return good(prompts, completions)

    resumed = method.fit(PROMPTS, purpose=counted, out=tmp_path / "run", checkpoint_every=1, resume=True, **given)
    assert calls == [80, 80, 64]  # 24 prompts in fives: two of five batches were kept
    both = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)


def test_what_it_refuses(human):
    with pytest.raises(TelosError, match="purpose"):
        RSO().fit(PROMPTS, model=TINY, steps=1)
    with pytest.raises(TelosError, match="no judge"):
        RSO(pairs="direct").fit(PROMPTS, model=TINY, purpose=good, steps=1)
    with pytest.raises(TelosError, match="'purpose' is missing"):
        RSO(pairs="sft_sample_rank").fit(human, model=TINY, steps=1)
    with pytest.raises(TelosError, match="nothing is left"):
        RSO(**SMALL).fit(PROMPTS, model=TINY, purpose=lambda prompts, completions: [1.0] * len(completions), steps=1)
    for bad in (
        {"gamma": 0.0}, {"beta": -1.0}, {"beta": math.nan}, {"sft_weight": -0.1}, {"num_samples": 1},
        {"num_samples": 65}, {"pairs": "all"}, {"loss": "log"}, {"ranking": "league"}, {"judge_batch": 0},
        {"loss": "raft", "pairs": "direct"},
    ):  # fmt: skip
        with pytest.raises(TelosError):
            RSO(**bad)
