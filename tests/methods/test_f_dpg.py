"""f-DPG: the dossier's checks by full enumeration, Z and baseline by hand, targets, proposals, and that it learns."""

import dataclasses
import math

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.methods.preferences.f_dpg import FDPG, Partition, RecentMean, Target, pseudo_rewards, score_function
from telos.ops.f_divergences import DIVERGENCES, divergence
from telos.purposes.weighted import Weighted
from telos.worlds import bit_chain, tiny_sent

PROMPTS = Prompts([f"topic{i % 4}" for i in range(8)])
INF = math.inf
CPU = torch.device("cpu")
ROWS = {**DIVERGENCES, "alpha": FDPG(divergence="alpha", alpha=0.3).row()}
SMALL = {"samples_per_prompt": 3, "prompts_per_batch": 4, "max_new_tokens": 8, "warmup_steps": 0, "max_grad_norm": 1e9}


def positive(prompts, completions):
    """1 with at least two positive words."""
    return [float(row[0] >= 2) for row in tiny_sent.counts(completions)]


def never(prompts, completions):
    return [0.0] * len(completions)


def words(prompts, completions):
    return [float(len(text.split())) for text in completions]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=Rng(seed).torch(), dtype=torch.float64)


def set_up(method, purpose=positive, prompts=PROMPTS):
    spec = method.prepare(Spec(prompts, {"model": TINY, "purpose": purpose}, 1, CPU, Rng(1000)))
    return method.learner(spec, Rng(1000)), method.source(spec), spec


def enumerated(row, log_target, logits, log_z=None, log_q=None, baseline=None):
    """The method's gradient from all states, each the one sample of its kind from q (uniform unless given)."""
    log_pi = logits.log_softmax(-1)
    exact = log_target.logsumexp(-1) if log_z is None else log_z
    rewards = pseudo_rewards(row, log_pi, log_target, exact.expand_as(log_pi))
    mean = log_pi.detach().exp() @ rewards if baseline is None else baseline
    # n q(x) samples of x: their weight is pi / q each, and n q in number.
    log_q = -math.log(len(logits)) + torch.zeros_like(log_pi) if log_q is None else log_q
    loss, _ = score_function(log_pi, (rewards - mean) * log_q.exp(), log_pi - log_q)
    return torch.autograd.grad(loss, logits)[0]


each_row = pytest.mark.parametrize("name", ROWS)


@each_row
def test_check_1_at_the_target_rewards_are_constant_and_the_gradient_is_zero(name):
    log_target = 3.0 + draw(4)
    logits = log_target.clone().requires_grad_()
    rewards = pseudo_rewards(ROWS[name], logits.log_softmax(-1), log_target, log_target.logsumexp(-1).expand(4))
    constant = {"kl": 1.0, "reverse_kl": -1.0}.get(name, 0.0)
    if name != "tv":  # sign(u): rounding decides
        assert torch.allclose(rewards, torch.full((4,), constant, dtype=torch.float64), atol=1e-12)
        assert enumerated(ROWS[name], log_target, logits).abs().max() < 1e-14
    even = torch.zeros(4, dtype=torch.float64)
    found = pseudo_rewards(ROWS[name], even.log_softmax(-1), even, even.logsumexp(-1).expand(4))
    assert found.tolist() == [constant] * 4
    assert enumerated(ROWS[name], even, even.clone().requires_grad_()).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("name", "reward"),
    [("kl", 0.0), ("reverse_kl", -INF), ("tv", -0.5), ("js", -math.log(2)), ("chi2", -1.0), ("reverse_chi2", -INF)],
)
def test_check_2_rewards_where_the_target_is_zero(name, reward):
    log_pi, log_target = torch.tensor([-2.0, -3.0]).double(), torch.tensor([-INF, -1.0]).double()
    found = pseudo_rewards(DIVERGENCES[name], log_pi, log_target, torch.zeros(2).double())
    assert float(found[0]) == pytest.approx(reward) and found[1].isfinite()
    clamped = pseudo_rewards(DIVERGENCES[name], log_pi, log_target, torch.zeros(2).double(), floor=-50, ceiling=2.0)
    assert float(clamped[0]) == pytest.approx(max(reward, -50.0)) and float(clamped[1]) <= 2.0


@each_row
@pytest.mark.parametrize("baseline", [None, 0.7])
def test_check_3_the_enumerated_gradient_is_autograds_with_any_baseline(name, baseline):
    log_target = 2.0 + draw(4)
    logits = draw(4, seed=1).requires_grad_()
    value = divergence(ROWS[name], logits.log_softmax(-1), log_target.log_softmax(-1))
    (expected,) = torch.autograd.grad(value, logits)
    given = None if baseline is None else torch.tensor(baseline).double()
    found = enumerated(ROWS[name], log_target, logits, baseline=given)
    assert expected.abs().max() > 1e-3 and torch.allclose(found, expected, atol=1e-12)


def test_check_4_reverse_kl_to_the_tilted_base_is_rl_with_a_kl_penalty():
    beta, log_a, r = 0.3, draw(4).log_softmax(-1), draw(4, seed=1)
    logits = draw(4, seed=2).requires_grad_()
    log_pi = logits.log_softmax(-1)
    objective = (log_pi.exp() * (r / beta - log_pi + log_a)).sum()
    (expected,) = torch.autograd.grad(-objective, logits)
    assert torch.allclose(enumerated(DIVERGENCES["reverse_kl"], log_a + r / beta, logits), expected, atol=1e-12)


@each_row
def test_check_5_a_constant_factor_changes_nothing_and_any_proposal_gives_the_same_mean_gradient(name):
    log_target, logits = draw(4), draw(4, seed=1).requires_grad_()
    plain = enumerated(ROWS[name], log_target, logits)
    assert torch.allclose(enumerated(ROWS[name], log_target + 7.0, logits), plain, atol=1e-12)
    log_q = draw(4, seed=2).log_softmax(-1)
    assert torch.allclose(enumerated(ROWS[name], log_target, logits, log_q=log_q), plain, atol=1e-12)


def test_check_5_training_on_a_shifted_score_is_the_same_run():
    """exp((r + c) / beta) scales P, and Z follows from the first batch on."""
    method = FDPG(beta=2.0, learning_rate=1e-3, **SMALL)

    def shifted(prompts, completions):
        return [value + 5.0 for value in words(prompts, completions)]

    runs = [
        method.fit(PROMPTS, model=TINY, purpose=purpose, steps=4, seed=1000, device="cpu")
        for purpose in (words, shifted)
    ]
    first, second = (run.state_dict() for run in runs)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_check_5_off_policy_from_the_policy_itself_is_on_policy():
    method = FDPG(factors=("constraint",), learning_rate=1e-3, **SMALL)
    on, source, _ = set_up(method)
    off, _, _ = set_up(dataclasses.replace(method, off_policy=True))
    batch = source.next(on.behaviour, Rng(1000))
    a, b = on.update(batch, Rng(0)), off.update(batch, Rng(0))
    assert float(a["grad_norm"]) > 1e-3 and float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-5)
    for p, q in zip(on.parameters, off.parameters, strict=True):
        one, other = on.optimizer.state[p]["exp_avg"], off.optimizer.state[q]["exp_avg"]
        assert torch.allclose(one, other, atol=1e-5 * float(a["grad_norm"]))


def test_two_updates_by_hand():
    """Z of every topic over all of its samples, the batch's own included; the baseline is that of the batch before."""
    learner, source, spec = set_up(FDPG(factors=("constraint",), learning_rate=1e-3, **SMALL))
    assert spec.given["contexts"].tolist() == [0, 1, 2, 3] * 2
    base, sums, counts, baseline = load_model(TINY), torch.zeros(4), torch.zeros(4), 0.0
    for step in range(2):
        batch = source.next(learner.behaviour, Rng(1000).at(step))
        hits = batch.scores
        assert 0 < hits.sum() < 12
        log_pi = sequence_log_probs(learner.model, batch.sequences)
        with torch.no_grad():
            log_a = sequence_log_probs(base, batch.sequences)
        ratio = hits * (log_a - log_pi.detach()).exp()
        for context, value in zip(batch.contexts, ratio, strict=True):
            sums[context] += value
            counts[context] += 1
        z = (sums / counts)[batch.contexts]
        t = z * log_pi.detach().exp() / (hits * log_a.exp())
        rewards = torch.where(hits > 0, -(2 * t / (t + 1)).log(), torch.tensor(-math.log(2)))
        known = z > 0
        advantages = torch.where(known, rewards - baseline, 0.0)
        expected = torch.autograd.grad(-(advantages * log_pi).mean(), learner.parameters)
        seen = []
        optimizer, parameters = learner.optimizer, learner.parameters
        hook = optimizer.register_step_pre_hook(
            lambda *_, seen=seen, ps=parameters: seen.extend(p.grad.clone() for p in ps)
        )
        metrics = learner.update(batch, Rng(0))
        hook.remove()
        scale = max(g.abs().max() for g in expected)
        assert scale > 1e-3
        assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(seen, expected, strict=True))
        assert float(metrics["known"]) == pytest.approx(float(known.float().mean()))
        assert float(metrics["log_z"]) == pytest.approx(float(z[known].log().mean()), abs=1e-4)
        baseline = float(learner.baseline.mean())
        if step == 0:
            assert baseline == pytest.approx(float(rewards[known].mean()), abs=1e-5)


def test_without_a_hit_nothing_moves():
    learner, source, _ = set_up(FDPG(factors=("constraint",), learning_rate=1e-2, **SMALL), never)
    before = [p.clone() for p in learner.parameters]
    metrics = learner.update(source.next(learner.behaviour, Rng(0)), Rng(0))
    assert float(metrics["known"]) == 0.0 and float(metrics["grad_norm"]) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
    assert int(learner.baseline.seen) == 0


def test_reverse_kl_under_a_hard_constraint_asks_for_a_floor():
    learner, source, _ = set_up(FDPG(divergence="reverse_kl", factors=("constraint",), **SMALL))
    batch = source.next(learner.behaviour, Rng(1000).at(0))
    with pytest.raises(TelosError, match="minus infinity"):
        learner.update(batch, Rng(0))
    learner, _, _ = set_up(FDPG(divergence="reverse_kl", factors=("constraint",), floor=-50.0, **SMALL))
    assert float(learner.update(batch, Rng(0))["pseudo_reward"]) < -1.0


@pytest.mark.parametrize("shift", [0.0, -5000.0])
def test_partition_is_the_mean_of_all_ratios_or_of_the_latest(shift):
    """Log ratios far below what exp can hold are no trouble."""
    ratios = torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, 7.0], [2.0, 0.0, 0.0]]).double()
    contexts = torch.tensor([0, 0, 2])
    for window in (0, 1, 2):
        partition = Partition(3, window, CPU)
        found = [partition.add(contexts, row.log() + shift) for row in ratios]
        firsts = [math.exp(float(log_z[0]) - shift) for log_z, _ in found]
        assert firsts == pytest.approx({0: [2.0, 2.5, 2.0], 1: [2.0, 3.0, 1.0], 2: [2.0, 2.5, 2.0]}[window])
        thirds = [(math.exp(float(log_z[2]) - shift) if ok[2] else 0.0) for log_z, ok in found]
        assert thirds == pytest.approx({0: [5.0, 6.0, 4.0], 1: [5.0, 7.0, 0.0], 2: [5.0, 6.0, 3.5]}[window])
    assert partition.log_sums.isfinite().all()
    log_z, known = Partition(1, 0, CPU).add(torch.tensor([0, 0]), torch.tensor([-INF, -INF]).double())
    assert log_z.tolist() == [0.0, 0.0] and known.tolist() == [False, False]


def test_the_baselines_window():
    mean = RecentMean(4, CPU)
    assert float(mean.mean()) == 0.0
    mean.add(torch.tensor([1.0, 3.0]).double())
    assert float(mean.mean()) == 2.0
    mean.add(torch.tensor([5.0, 7.0, 9.0]).double())
    assert float(mean.mean()) == 6.0  # 3, 5, 7, 9
    mean.add(torch.arange(10.0).double())
    assert float(mean.mean()) == 7.5  # 6, 7, 8, 9


def test_baselines_of_other_kinds():
    rewards = torch.tensor([1.0, 2.0, 6.0]).double()
    learner, _, _ = set_up(FDPG(baseline="leave_one_out", **SMALL), words)
    assert learner.baselines(rewards).tolist() == pytest.approx([4.0, 3.5, 1.5])
    learner, _, _ = set_up(FDPG(baseline="none", **SMALL), words)
    learner.baseline.add(rewards)
    assert learner.baselines(rewards).tolist() == [0.0, 0.0, 0.0]


def test_targets_multiply():
    method = FDPG(beta=0.5, factors=("tilt", "constraint", "moment"), moments=(0.3,))
    features = torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.0, 1.0]])
    assert Target(method).log_factor(features).tolist() == [4.0, -INF]
    assert Target(method, torch.tensor([-2.0])).log_factor(features).tolist() == [-2.0, -INF]


def test_a_product_of_three_factors_on_a_language_model():
    """Terms in their order: a tilt, a constraint, and a moment whose lambda gives the mean asked for."""

    def clean(prompts, completions):
        return [float(row[1] == 0) for row in tiny_sent.counts(completions)]

    purpose = Weighted(((words, 0.5), (clean, 1.0), (positive, 1.0)))
    method = FDPG(beta=5.0, factors=("tilt", "constraint", "moment"), moments=(0.6,), moment_samples=400, **SMALL)
    learner, source, spec = set_up(method, purpose)
    (coefficient,) = spec.given["target"].coefficients.tolist()
    assert str(round(coefficient, 4)) in spec.notes["moments"]
    # Fresh samples of the base model, reweighted topic by topic, have the mean.
    drawn, features = source.sample(LanguagePolicy(spec.given["reference"]), [0, 1, 2, 3], 300, Rng(7).torch())
    shares = spec.given["target"].log_factor(features).view(4, 300).softmax(-1)
    assert float((shares * features[:, 2].view(4, 300)).sum(-1).mean()) == pytest.approx(0.6, abs=0.06)
    assert features[:, 0].tolist() == [0.5 * len(text.split()) for text in drawn.texts]
    batch = source.next(lambda: LanguagePolicy(spec.given["model"]), Rng(0))
    allowed = batch.log_targets > -INF
    assert 0 < allowed.sum() < 12
    texts = [
        learner.model.tokenizer.decode(row[cut:end], skip_special_tokens=True)
        for row, cut, end in zip(
            batch.sequences.tokens, batch.sequences.boundaries, batch.sequences.lengths, strict=True
        )
    ]
    expected = torch.tensor([0.1 * n + coefficient * hit for n, hit in zip(words([], texts), positive([], texts))])
    assert torch.allclose((batch.log_targets - batch.base_log_probs).float()[allowed], expected[allowed], atol=1e-4)
    assert allowed.tolist() == [bool(value) for value in clean([], texts)]


def test_the_proposal_is_replaced_by_a_better_policy_only():
    method = FDPG(factors=("constraint",), off_policy=True, proposal_every=2, learning_rate=1e-3, **SMALL)
    learner, source, _ = set_up(method)
    start = [p.clone() for p in learner.proposal.network.parameters()]
    for step in range(2):
        learner.update(source.next(learner.behaviour, Rng(1).at(step)), Rng(0))
    learner.gain, learner.updates = -1.0, 2
    learner.consider_proposal(torch.zeros(1), torch.zeros(1))
    assert learner.gain == 0.0
    fresh, _, _ = set_up(method)
    assert all(torch.equal(a, b) for a, b in zip(start, fresh.proposal.network.parameters(), strict=True))
    fresh.updates = 2
    fresh.network.load_state_dict(learner.network.state_dict())
    # E_q (p / q) log(pi / q) = 2 * 0.5 > 0: the policy is nearer to the target.
    fresh.consider_proposal(torch.tensor([math.log(2.0)]), torch.tensor([0.5]))
    assert fresh.replaced == 1
    both = zip(fresh.proposal.network.parameters(), learner.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    fresh.consider_proposal(torch.tensor([0.0]), torch.tensor([-0.5]))
    assert fresh.replaced == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"divergence": "hellinger"}, "unknown value"),
        ({"factors": ("tilt", "score")}, "unknown value"),
        ({"factors": ("moment",)}, "the mean that it is to have"),
        ({"moments": (0.5,)}, "the mean that it is to have"),
        ({"beta": 0.0}, "out of range"),
        ({"alpha": 1.0}, "out of range"),
        ({"baseline": "leave_one_out", "samples_per_prompt": 1}, "out of range"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(TelosError, match=words):
        FDPG(**options)


def test_terms_and_factors_must_agree_in_number():
    with pytest.raises(TelosError, match="one factor of the target"):
        set_up(FDPG(factors=("tilt", "constraint"), **SMALL), words)


def test_one_z_for_all_prompts():
    _, _, spec = set_up(FDPG(conditional=False, **SMALL), words)
    assert spec.given["contexts"].tolist() == [0] * 8


def test_exact_descent_has_the_dossiers_figures():
    """Jensen-Shannon on the bimodal bits after 600 exact steps."""
    log_target = bit_chain.base_log_probs() + bit_chain.bimodal()
    log_z = log_target.logsumexp(-1).expand_as(log_target)
    logits = torch.full((8,), 0.1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        log_pi = bit_chain.coin_log_probs(logits)
        rewards = pseudo_rewards(DIVERGENCES["js"], log_pi, log_target, log_z)
        advantages = rewards - log_pi.detach().exp() @ rewards
        loss, _ = score_function(log_pi, advantages, log_pi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = bit_chain.measures(bit_chain.coin_log_probs(logits.detach()), log_target - log_z)
    expected = {"alignment": 0.831, "entropy": 2.476, "js": 0.293, "tv": 0.522}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("options", [{"divergence": "js"}, {"divergence": "kl", "off_policy": True}], ids=str)
def test_it_learns_a_constraint_and_finds_z(options):
    """At least four positive words: 13 % of the base model's samples."""

    def four(prompts, completions):
        return [float(row[0] >= 4) for row in tiny_sent.counts(completions)]

    seen = []
    method = FDPG(
        factors=("constraint",), learning_rate=1e-3, warmup_steps=0, max_new_tokens=21, proposal_every=4, **options
    )
    learner, source, _ = set_up(method, four, Prompts([f"topic{i}" for i in range(8)]))
    for step in range(24):
        seen.append(learner.update(source.next(learner.behaviour, Rng(1000).at(step)), Rng(0)))
    start, end = (sum(float(m["score"]) for m in part) / 4 for part in (seen[:4], seen[-4:]))
    assert start < 0.3 and end > start + 0.2
    assert math.exp(float(seen[-1]["log_z"])) == pytest.approx(0.14, abs=0.05)
    assert learner.replaced >= 1 if method.off_policy else learner.replaced == 0
