"""RPO: the dossier's checks with numbers, on tensors, on arms and on the bundled model."""

import json
import math

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Preferences
from telos.lm.log_probs import reference_log_probs, sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.tokens import tokenise
from telos.methods.preferences.dpo import DPO, LOSSES, DPOLearner
from telos.methods.preferences.rpo import PAIR_LOSSES, RPO, Beside, RPOLearner, rpo_loss
from telos.ops import preferences
from telos.worlds import arms, bit_strings, tiny_sent

SIGMOID = PAIR_LOSSES["sigmoid"]
OPTIONS = {"beta": 0.1, "learning_rate": 1e-3, "warmup_steps": 0, "batch_size": 16}


@pytest.fixture(scope="module")
def pairs():
    rng = Rng(1000)
    prompts, first = tiny_sent.sentences(32, rng.at("a").numpy())
    _, second = tiny_sent.sentences(32, rng.at("b").numpy())
    return Preferences(prompts, [" " + text for text in first], [" " + text for text in second])


def draws(*shape):
    return torch.randn(*shape, generator=Rng(1).torch(), dtype=torch.float64)


def test_without_eta_it_is_dpo_bit_for_bit(pairs):
    groups = tokenise(load_model(TINY), pairs)
    groups = groups.with_reference(reference_log_probs(load_model(TINY), groups))
    models = load_model(TINY), load_model(TINY)
    learners = (
        DPOLearner(DPO(**OPTIONS), models[0], LOSSES["sigmoid"]),
        RPOLearner(RPO(eta=0.0, **OPTIONS), models[1]),
    )
    for start in (0, 16):
        one, two = (learner.update(groups.batch(range(start, start + 16)), Rng(0)) for learner in learners)
        assert all(float(one[name]) == float(two[name]) for name in one)
    assert all(torch.equal(a, b) for a, b in zip(models[0].trainable(), models[1].trainable(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(models[0].trainable(), load_model(TINY).trainable(), strict=True))


def test_a_large_eta_has_the_gradient_of_fine_tuning_on_the_chosen():
    log_probs, reference = (draws(6, 2) - 9).requires_grad_(), draws(6, 2) - 9
    weight = 1e9
    ratios = preferences.anchored(log_probs, (1.0, reference))
    value = rpo_loss(ratios, log_probs[:, 0], 0.1, weight, SIGMOID).mean() / weight
    (slope,) = torch.autograd.grad(value, log_probs)
    assert torch.allclose(slope[:, 0], torch.full((6,), -1 / 6, dtype=torch.float64)) and slope[:, 1].abs().max() < 1e-9


def test_at_the_reference_the_loss_is_log_two_less_the_weighted_log_probs(pairs, tmp_path):
    groups = tokenise(load_model(TINY), pairs)
    values = reference_log_probs(load_model(TINY), groups)[:, 0]
    lengths = torch.tensor([len(group[0]) for group in groups.completions])
    for more, expected in (
        ({"eta": 0.3}, math.log(2) - 0.3 * 0.1 * values.mean().item()),
        ({"eta": 0.3, "sft_reduction": "token_mean"}, math.log(2) - 0.3 * (values / lengths).mean().item()),
        ({"eta": 0.3, "loss": "ipo"}, 25 - 0.3 * 0.1 * values.mean().item()),
        ({"eta": 0.3, "loss": "hinge"}, 1 - 0.3 * 0.1 * values.mean().item()),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        method = RPO(**{**OPTIONS, "batch_size": 32}, **more)
        method.fit(pairs, model=TINY, steps=1, device="cpu", out=out, evaluate=lambda s, p: {}, evaluate_every=1)
        row = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
        assert row["chosen_log_prob"] == pytest.approx(values.mean().item(), rel=1e-5)


def test_a_constant_on_both_policy_log_probs_costs_eta_beta_c_and_one_on_the_reference_nothing():
    beta, eta, c = 0.2, 0.7, 3.0
    log_probs, reference = draws(5, 2), draws(5, 2) + 1

    def loss(policy, anchor):
        return rpo_loss(preferences.anchored(policy, (1.0, anchor)), policy[:, 0], beta, eta * beta, SIGMOID)

    assert torch.allclose(loss(log_probs + c, reference), loss(log_probs, reference) - eta * beta * c)
    assert torch.allclose(loss(log_probs, reference + c), loss(log_probs, reference))


def test_once_the_pair_is_settled_the_chosen_keeps_a_gradient_of_eta_beta():
    beta, eta = 0.2, 0.7
    log_probs = torch.tensor([[0.0, -500.0]], dtype=torch.float64, requires_grad=True)
    rpo_loss(log_probs - 0.0, log_probs[:, 0], beta, eta * beta, SIGMOID).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0].tolist() == pytest.approx([-eta * beta, 0.0], abs=1e-12)


def test_with_the_reference_as_baseline_and_no_pairs_the_minimiser_is_the_reference():
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    def loss():
        # Every baseline response by its probability, and pairs of a response with itself, which say nothing.
        log_probs = logits.log_softmax(-1)
        return (reference.exp() * rpo_loss(torch.zeros(4, 2), log_probs, 0.5, 0.5, SIGMOID)).sum()

    bit_strings.minimise(loss, [logits], 700, 0.03)
    assert torch.allclose(logits.detach().log_softmax(-1), reference, atol=1e-4)


def test_its_minimiser_solves_the_maximin_problem():
    """Algorithm 1 by projected gradient on the adversary's reward, algorithm 2 by Adam on the policy."""
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    pairs = torch.tensor([[0, 1], [0, 1], [1, 0], [2, 1], [1, 2], [2, 1]])
    base = torch.tensor([0.34, 0.32, 0.33, 0.01], dtype=torch.float64).log()
    beta, eta = 0.5, 0.4
    expected, rewards = arms.maximin(pairs, reference, base, beta=beta, eta=eta, top=30.0, steps=4000)
    assert rewards.min() > 0 and rewards.max() < 30  # the box does not bind
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    def loss():
        log_probs = logits.log_softmax(-1)
        imitated = (base.exp() * log_probs).sum().expand(len(pairs))
        ratios = (log_probs - reference)[pairs]
        return rpo_loss(ratios, imitated, beta, eta * beta, SIGMOID).mean()

    bit_strings.minimise(loss, [logits], 1500, 0.02)
    assert torch.allclose(logits.detach().log_softmax(-1), expected, atol=2e-3)
    # Pessimism: the arm that no pair and no baseline covers gets less than the reference gives it.
    assert expected[3].exp() < 0.1


def test_the_likelihood_of_the_chosen_falls_under_dpo_and_stays_under_rpo(pairs):
    changes = []
    groups = tokenise(load_model(TINY), pairs)
    before = reference_log_probs(load_model(TINY), groups)[:, 0]
    for eta in (0.0, 1.0):
        policy = RPO(eta=eta, **{**OPTIONS, "batch_size": 32}).fit(pairs, model=TINY, steps=15, device="cpu")
        changes.append((reference_log_probs(policy.model, groups)[:, 0] - before).mean().item())
    assert changes[1] > changes[0] + 0.5


def test_samples_of_the_reference_as_the_baseline(pairs):
    method = RPO(eta=5.0, baseline="reference", **OPTIONS)
    first, second = (method.fit(pairs, model=TINY, steps=3, device="cpu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    other = RPO(eta=5.0, **OPTIONS).fit(pairs, model=TINY, steps=3, device="cpu")
    assert any(not torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values()))


def test_responses_of_another_file_are_imitated(pairs, tmp_path):
    text = " good1 good2 good3"
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"topic{i}", "completion": text}) + "\n" for i in range(8)))
    before, after = [], []
    policy = RPO(eta=20.0, baseline=str(file), **OPTIONS).fit(pairs, model=TINY, steps=10, device="cpu")
    for model, values in ((load_model(TINY), before), (policy.model, after)):
        groups = tokenise(model, Preferences(["topic1"], [text], [" bad1"]))
        values.append(reference_log_probs(model, groups)[0, 0].item())
    assert after[0] > before[0] + 3
    with pytest.raises(TelosError, match="nowhere"):
        RPO(baseline=str(tmp_path / "nowhere.jsonl")).fit(pairs, model=TINY, steps=1, device="cpu")


def test_a_batch_with_separate_responses_in_parts_gives_the_same_step(pairs):
    model = load_model(TINY)
    groups = tokenise(model, pairs)
    groups = groups.with_reference(reference_log_probs(model, groups))
    ranked, responses = groups.batch(range(16)), groups.sequences(range(16, 32))[:, 1]
    grads = []
    for micro in (1, 4):
        model, seen = load_model(TINY), []
        learner = RPOLearner(RPO(eta=0.5, baseline="reference", **OPTIONS), model)
        learner.optimizer.register_step_pre_hook(
            lambda *_, seen=seen, model=model: seen.extend(p.grad.clone() for p in model.trainable())
        )
        metrics = learner.update(Beside(ranked.sequences, ranked.reference, responses), Rng(0), micro)
        with torch.no_grad():
            expected = -sequence_log_probs(load_model(TINY), responses).mean().item()
        assert float(metrics["imitation"]) == pytest.approx(expected, rel=1e-5)
        grads.append(torch.cat([g.flatten() for g in seen]))
    assert (grads[0] - grads[1]).abs().max() < 1e-5 * grads[0].abs().max()


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"eta": -0.1}, {"eta": math.inf}, {"loss": "no"}, {"sft_reduction": "no"}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(TelosError):
        RPO(**options)
