"""SquareCB-ERM: the reward model, the policy, weights, the loop of generations, and use from files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import LoggedBandit
from telos.methods.decisions.squarecb_adyen import (
    BanditPolicy,
    RewardLearner,
    SquareCBAdyen,
    context_normaliser,
    regression_loss,
    row_weights,
)
from telos.ops.exploration import square_cb
from telos.worlds.payments import Payments, serve


def log(rows: int = 2000, **changes: Any) -> LoggedBandit:
    """Action 0 succeeds where x > 0, action 1 where x < 0, action 2 in 4 of 10; 1 in 10 rows allow only action 2."""
    rng = Rng(1000).torch()
    contexts = torch.randn(rows, 2, generator=rng)
    allowed = torch.ones(rows, 3, dtype=torch.bool)
    allowed[::10, :2] = False
    actions = torch.multinomial(allowed.float(), 1, generator=rng)[:, 0]
    chance = torch.stack([contexts[:, 0] > 0, contexts[:, 0] < 0, torch.full((rows,), 0.4)], 1).float()
    rewards = (torch.rand(rows, generator=rng) < chance.gather(1, actions[:, None])[:, 0]).float()
    columns: dict[str, Any] = {
        "contexts": contexts, "actions": actions, "rewards": rewards, "allowed": allowed,
        "propensities": 1 / allowed.sum(-1), "action_names": ("left", "right", "none"),
    }  # fmt: skip
    return LoggedBandit.validated(**{**columns, **changes})


def fitted(steps: int = 400, **options: Any) -> BanditPolicy:
    return SquareCBAdyen(**options).fit(log(), steps=steps, seed=1000, device="cpu")


# The model and the policy.


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_it_learns_what_each_action_earns(loss: Any):
    policy = fitted(loss=loss)
    x = torch.tensor([[1.5, 0.0], [-1.5, 0.0]])
    predictions = policy.rewards(x)
    assert torch.allclose(predictions[:, 2], torch.tensor([0.4, 0.4]), atol=0.12)
    assert (predictions.diagonal() > 0.85).all() and predictions[0, 1] < 0.15 and predictions[1, 0] < 0.15
    assert policy.act(x).action.tolist() == [0, 1] and policy.act(x).log_prob is None
    assert policy.act(x, mask=[[False, True, True]] * 2).action.tolist() == [2, 1]
    assert policy.act(x[0]).action.dim() == 0 and policy.action_names == ("left", "right", "none")


def test_all_outputs_are_those_of_the_network_on_one_hot_actions():
    policy = BanditPolicy(5, 4, (7, 6), rng=Rng(0).torch())
    contexts = torch.randn(9, 5, generator=Rng(1).torch())
    every = policy.outputs(contexts)
    for action in range(4):
        assert torch.allclose(policy.output(contexts, torch.full((9,), action)), every[:, action], atol=1e-6)
    inputs = torch.cat([contexts, torch.eye(4)[[2] * 9]], 1)
    assert torch.allclose(policy.net(inputs)[:, 0], every[:, 2], atol=1e-6)


def test_log_probs_are_those_of_what_is_drawn():
    policy, data = fitted(gamma=20.0), log()
    drawn = policy.act(data.contexts, mask=data.allowed, explore=True, rng=Rng(3).torch())
    assert drawn.log_prob is not None and data.allowed[torch.arange(len(data)), drawn.action].all()
    assert torch.equal(policy.log_prob(data.contexts, drawn.action, mask=data.allowed), drawn.log_prob)
    expected = square_cb(policy.rewards(data.contexts), data.allowed, 20.0)
    assert torch.equal(policy.probabilities(data.contexts, data.allowed), expected)
    counts = torch.bincount(drawn.action, minlength=3) / len(data)
    assert torch.allclose(counts.double(), expected.mean(0), atol=0.03)
    impossible = policy.log_prob(data.contexts[:1], torch.tensor([0]), mask=[False, True, True])
    assert impossible.item() == -math.inf
    with pytest.raises(TelosError, match="generator"):
        policy.act(data.contexts, explore=True)


def test_the_same_model_with_another_rule():
    policy, x = fitted(gamma=20.0), log().contexts[:50]
    greedy = policy.exploring("greedy")
    assert torch.equal(greedy.rewards(x), policy.rewards(x))
    assert (greedy.log_prob(x, policy.act(x).action) == 0).all()
    assert torch.allclose(policy.exploring("squarecb", gamma=0.0).probabilities(x), torch.full((50, 3), 1 / 3).double())
    with pytest.raises(TelosError, match="no exploration is called 'ucb'"):
        policy.exploring("ucb")


def test_one_context_and_batches_and_what_does_not_fit():
    policy = fitted(steps=5)
    x = log().contexts[:4]
    assert torch.allclose(policy.probabilities(x[2], [True, False, True]), policy.probabilities(x, [[1, 0, 1]] * 4)[2])
    assert policy.log_prob(x[2], torch.tensor(1)).dim() == 0
    for mask, message in (([True, True], "does not fit"), ([[False] * 3] * 4, "allows no action")):
        with pytest.raises(TelosError, match=message):
            policy.act(x, mask=mask)
    with pytest.raises(TelosError, match="do not fit the policy"):
        policy.act(torch.zeros(2, 3))


def test_contexts_are_standardised_but_flags_and_constants_are_not():
    contexts = torch.tensor([[10.0, 0.0, 7.0, 0.0], [14.0, 1.0, 7.0, 0.0], [12.0, 0.0, 7.0, 0.0]])
    normaliser = context_normaliser(contexts)
    assert torch.allclose(normaliser.mean, torch.tensor([12.0, 0.0, 7.0, 0.0]))
    assert torch.allclose(normaliser.std, torch.tensor([math.sqrt(8 / 3), 1.0, 1.0, 1.0]))


# Losses and weights.


def test_losses_by_hand():
    outputs, rewards = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.25])
    total, count = regression_loss(outputs, rewards, None, bce=True)
    sigmoid = 1 / (1 + math.exp(-2))
    expected = math.log(2) - 0.25 * math.log(sigmoid) - 0.75 * math.log(1 - sigmoid)
    assert count == 2 and total.item() == pytest.approx(expected, rel=1e-6)
    assert regression_loss(outputs, rewards, None, bce=False)[0].item() == pytest.approx(1 + 1.75**2)
    weights = torch.tensor([3.0, 0.0])
    assert regression_loss(outputs, rewards, weights, bce=True)[0].item() == pytest.approx(3 * math.log(2))
    assert regression_loss(outputs, rewards, weights, bce=False)[0].item() == pytest.approx(3)


def test_weights_by_hand():
    data = log(rows=20)[:4]
    assert row_weights(SquareCBAdyen(), data) is None
    weights = row_weights(SquareCBAdyen(weighting="ips", weight_cap=2.0), data, mean=4.0)
    assert weights is not None and torch.allclose(weights, (1 / data.propensities).clamp(max=2.0) / 4)  # type: ignore[operator]
    weights = row_weights(SquareCBAdyen(weighting="class_balanced"), data, success_rate=0.8)
    assert weights is not None
    assert weights.tolist() == pytest.approx([0.5 / 0.8 if r else 0.5 / 0.2 for r in data.rewards.tolist()])


@pytest.mark.parametrize("weighting", ["ips", "class_balanced"])
def test_weights_have_mean_one_over_the_data(weighting: Any):
    data, method = log(), SquareCBAdyen(weighting=weighting)
    learner = RewardLearner(method, data, Rng(0))
    weights = row_weights(method, data, learner.mean_weight, learner.success_rate)
    assert weights is not None and weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    if weighting == "class_balanced":
        assert weights[data.rewards == 1].sum().item() == pytest.approx(1000, rel=1e-4)


def test_class_balance_moves_a_rare_kind_to_one_half():
    rewards = (torch.arange(2000) % 10 == 0).float()
    data = LoggedBandit.validated(contexts=torch.zeros(2000, 1), actions=[0] * 2000, rewards=rewards, n_actions=1)
    predictions = {}
    for weighting in ("none", "class_balanced"):
        policy = SquareCBAdyen(weighting=weighting).fit(data, steps=300, seed=1000, device="cpu")
        predictions[weighting] = policy.rewards(torch.zeros(1)).item()
    assert predictions["none"] == pytest.approx(0.1, abs=0.03)
    assert predictions["class_balanced"] == pytest.approx(0.5, abs=0.05)


# The loop of generations.


def run(generations: int, **options: Any) -> Any:
    method = SquareCBAdyen(**{"generation": 300, "epochs": 2, **options})
    world, online = Payments.draw(Rng(1000)), None
    online = method.online(context_size=8, n_actions=8, seed=1000)
    for g in range(generations):
        serve(online, world.requests(300, Rng(1000).at(g)))
    return online


def test_generation_0_is_uniform_and_later_ones_explore_around_the_model():
    online = run(1)
    assert online.product().exploration == "uniform" and online.metrics == {}
    allowed = online.log().allowed
    assert torch.allclose(online.log().propensities, 1 / allowed.sum(-1).float())
    assert run(2).product().exploration == "squarecb"


@pytest.mark.parametrize(
    ("memory", "delay", "rows", "kept"),
    [(1, 0, 300, 300), (2, 0, 600, 600), (4, 0, 1200, 1200), (0, 0, 1500, 1800), (1, 2, 300, 900), (2, 1, 600, 900)],
)
def test_a_fit_sees_its_memory_and_its_delay(memory: int, delay: int, rows: int, kept: int):
    online = run(6, memory=memory, delay=delay)
    assert online.metrics["rows"] == rows and online.generation == 5
    # What is kept: the rows that the next fit will want, and this generation's.
    assert online.ledger.next - online.ledger.first == kept


def test_the_first_generations_wait_for_delayed_feedback():
    assert run(3, delay=2).product().exploration == "uniform"
    assert run(4, delay=2).metrics == {**run(4, delay=2).metrics, "generation": 3, "rows": 300}


def test_without_any_feedback_the_policy_stays():
    online = SquareCBAdyen(generation=10).online(context_size=2, n_actions=3)
    online.act(torch.zeros(35, 2))
    assert online.generation == 3 and online.product().exploration == "uniform"


def test_feedback_counts_if_it_comes_before_the_fit():
    online = SquareCBAdyen(generation=10, epochs=1).online(context_size=2, n_actions=3)
    online.act(torch.zeros(10, 2))
    online.learn([1.0] * 4, [9, 0, 4, 2])
    online.act(torch.zeros(1, 2))
    assert online.metrics["rows"] == 4
    online.learn(1.0, 3)
    assert online.ledger.late == 1


def test_gamma_grows_with_the_root_of_the_generation():
    online = run(5, gamma=10.0, gamma_schedule="sqrt")
    assert online.product().gamma == pytest.approx(20.0)
    assert run(5, gamma=10.0).product().gamma == 10.0


def test_a_stream_can_start_from_a_fitted_policy():
    policy = fitted(gamma=50.0)
    online = SquareCBAdyen().online(context_size=2, n_actions=3, start=policy)
    decision = online.act(log().contexts[:200])
    assert decision.log_prob is not None
    assert torch.equal(policy.log_prob(log().contexts[:200], decision.action), decision.log_prob)
    with pytest.raises(TelosError, match="does not fit the stream"):
        SquareCBAdyen().online(context_size=3, n_actions=3, start=policy)


def test_it_earns_more_than_uniform_on_payments():
    earned = {}
    for rule in ("uniform", "squarecb"):
        world = Payments.draw(Rng(1000))
        online = SquareCBAdyen(exploration=rule, generation=2000).online(context_size=8, n_actions=8, seed=1000)
        earned[rule] = [serve(online, world.requests(2000, Rng(1000).at(g)))[0].mean().item() for g in range(2)]
    assert earned["squarecb"][0] == earned["uniform"][0]
    assert earned["squarecb"][1] > earned["uniform"][1] + 0.1


def test_a_diverging_fit_is_named_and_the_policy_stays():
    online = SquareCBAdyen(generation=20, learning_rate=1e30, loss="mse").online(context_size=2, n_actions=3)
    online.learn([1e10] * 20, online.act(torch.randn(20, 2, generator=Rng(0).torch()) * 1e10).id)
    for _ in range(2):
        with pytest.raises(TelosError, match="before generation 1 diverged"):
            online.act(torch.zeros(1, 2))
    assert online.product().exploration == "uniform" and online.ledger.next == 20


# Refusals.


@pytest.mark.parametrize(
    "option",
    [
        {"gamma": -1.0}, {"gamma": math.inf}, {"epsilon": 1.5}, {"temperature": 0.0}, {"memory": -1}, {"delay": -1},
        {"generation": 0}, {"epochs": 0}, {"weight_cap": 0.5}, {"batch_size": 0},
    ],
)  # fmt: skip
def test_options_out_of_range(option: dict[str, Any]):
    name = next(iter(option))
    with pytest.raises(TelosError, match=name):
        SquareCBAdyen(**option).fit(log(), steps=1, device="cpu")
    with pytest.raises(TelosError, match=name):
        SquareCBAdyen(**option).online(context_size=2, n_actions=3)


@pytest.mark.parametrize(
    ("options", "reward", "message"),
    [
        ({}, 1.5, "reward 7 is out of range"),
        ({}, -0.1, "reward 7 is out of range"),
        ({"loss": "mse", "exploration": "fastcb"}, 1.5, "reward 7 is out of range"),
        ({"weighting": "class_balanced"}, 0.5, "reward 7 is out of range"),
    ],
)
def test_rewards_that_the_loss_or_the_rule_cannot_use(options: dict[str, Any], reward: float, message: str):
    rewards = log().rewards.clone()
    rewards[7] = reward
    with pytest.raises(TelosError, match=message):
        SquareCBAdyen(**options).fit(log(rewards=rewards), steps=1, device="cpu")


def test_mse_takes_any_rewards_and_ips_needs_propensities():
    policy = SquareCBAdyen(loss="mse").fit(log(rewards=50 * log().rewards - 10), steps=300, seed=1000, device="cpu")
    assert policy.rewards(torch.zeros(1, 2)).abs().max() > 2
    with pytest.raises(TelosError, match="no propensities"):
        SquareCBAdyen(weighting="ips").fit(log(propensities=None), steps=1, device="cpu")
    assert isinstance(SquareCBAdyen().fit(log(propensities=None), steps=1, device="cpu"), BanditPolicy)


def test_prepare_wants_a_log():
    with pytest.raises(TelosError, match="learns from a log"):
        SquareCBAdyen().prepare(Spec([1, 2], {}, 1, torch.device("cpu"), Rng(0)))


# From a file, by hand.


def test_fit_resume_and_load_from_a_csv(tmp_path: Path):
    pytest.importorskip("pyarrow", reason="reading logs needs pyarrow, an extra")
    data = log(rows=200)
    rows = ["amount,size,action,propensity,reward,allowed"]
    for i in range(len(data)):
        row = data[i : i + 1]
        allowed = "|".join(n for n, a in zip(data.action_names, row.allowed[0]) if a)
        assert row.propensities is not None
        rows.append(
            f"{row.contexts[0, 0]},{row.contexts[0, 1]},{data.action_names[int(row.actions)]},"
            f"{float(row.propensities)},{int(row.rewards)},{allowed}"
        )
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    method = SquareCBAdyen(gamma=30.0)
    whole = method.fit(str(tmp_path / "log.csv"), steps=30, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.fit(
            str(tmp_path / "log.csv"), steps=30, device="cpu", out=tmp_path / "run", checkpoint_every=7, evaluate=kill,
            evaluate_every=20,
        )  # fmt: skip
    policy = telos.resume(tmp_path / "run")
    loaded = telos.load_product(tmp_path / "run")
    assert torch.equal(policy.rewards(data.contexts), whole.rewards(data.contexts))
    assert torch.equal(loaded.probabilities(data.contexts), whole.probabilities(data.contexts))
    assert loaded.context_names == ("amount", "size") and loaded.action_names == ("left", "none", "right")
    assert loaded.gamma == 30.0
