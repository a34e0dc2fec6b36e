"""The dossier's checks of BESO, with numbers, and learning on Bypass2D in seconds."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Transitions
from telos.methods.goals.beso import BESO, BESOLearner, BESOPolicy, denoising_loss
from telos.nets.denoisers import Denoiser
from telos.ops.diffusion import SAMPLERS, SCHEDULES, levels, preconditioning
from telos.worlds import bypass2d

MLP = {"network": "mlp", "hidden": (32, 32), "window": 3, "batch_size": 32, "learning_rate": 1e-3}
GPT = {"layers": 1, "width": 12, "heads": 2, "window": 3, "batch_size": 32, "learning_rate": 1e-3}


def data(n: int = 20) -> Transitions:
    return bypass2d.dataset(n, Rng(1000))


def learner(method: BESO, record: Transitions | None = None) -> BESOLearner:
    spec = method.prepare(Spec(record or data(), {}, 100, torch.device("cpu"), Rng(0)))
    return method.learner(spec, Rng(0))


def fitted(method: BESO, steps: int = 30) -> BESOPolicy:
    return method.fit(data(), steps=steps, seed=3, device="cpu")


def act(policy: BESOPolicy, seed: int = 0, goal: object = (0.92, 0.5), **options: object) -> Tensor:
    return policy.act(torch.tensor([[0.2, 0.5], [0.7, 0.8]]), goal=goal, rng=Rng(seed).torch(), **options).action  # type: ignore[arg-type]


class Ideal(Denoiser):
    """F whose D is a constant action, whatever its inputs; or the exact D of Gaussian actions."""

    slots = 1

    def __init__(self, target: Tensor, sigma_data: float, spread: float = 0.0):
        super().__init__()
        self.target, self.sigma_data, self.spread = target, sigma_data, spread

    def forward(self, actions, states, goals, noise, mask, draws=None):
        sigma = torch.exp(4 * noise)[:, None, None]
        skip, out, into = preconditioning(sigma, self.sigma_data)
        noisy = actions / into
        best = (self.spread**2 * noisy + sigma**2 * self.target) / (self.spread**2 + sigma**2)
        return (best - skip * noisy) / out


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_if_every_demonstrated_action_is_the_same_it_is_returned(n: int, schedule: str):
    policy = fitted(BESO(**MLP), 0)
    target = torch.tensor([0.3, -0.6])
    policy.net = Ideal(policy.play.actions(target), policy.sigma_data)
    for sampler in SAMPLERS:
        found = act(policy.with_sampling(steps=n, sampler=sampler, schedule=schedule))
        assert torch.allclose(found, target.expand(2, 2), atol=1e-5)


def test_the_loss_of_the_ideal_network_is_the_variance_that_is_left():
    """For actions N(m, s^2) the best D leaves s^2 sigma^2 / (s^2 + sigma^2), divided by c_out^2 in the loss."""
    sigma_data, spread, mean = 0.5, 0.4, 0.2
    actions = mean + spread * torch.randn(100_000, 1, 1, generator=Rng(0).torch())
    noise = torch.randn(100_000, 1, 1, generator=Rng(1).torch())
    nothing, mask = torch.zeros(100_000, 1, 1), torch.ones(100_000, 1, dtype=torch.bool)
    for sigma in (0.05, 0.3, 1.0):
        level = torch.full((100_000,), sigma)
        net = Ideal(torch.tensor(mean), sigma_data, spread)
        loss, count = denoising_loss(net, actions, nothing, nothing, mask, level, noise, sigma_data)
        c_out = sigma * sigma_data / math.hypot(sigma, sigma_data)
        expected = (spread * sigma / math.hypot(spread, sigma) / c_out) ** 2
        assert float(loss / count) == pytest.approx(expected, rel=0.02)
    # With sigma_data as the data have it, that is 1 at every level: (s sigma)^2 / (s^2 + sigma^2) = c_out^2.
    net = Ideal(torch.tensor(mean), spread, spread)
    loss, count = denoising_loss(net, actions, nothing, nothing, mask, level, noise, spread)
    assert float(loss / count) == pytest.approx(1.0, rel=0.02)


def test_one_step_is_the_denoiser_at_the_highest_level():
    policy = fitted(BESO(**MLP)).with_sampling(steps=1)
    window = policy.play.look(torch.tensor([[0.2, 0.5], [0.7, 0.8]]), (0.92, 0.5), None)
    z = torch.randn(2, 2, generator=Rng(0).torch())
    expected = policy.play.raw(policy.denoise(policy.sigma_max * z, policy.sigma_max, window))
    low, high = torch.tensor(policy.low), torch.tensor(policy.high)
    assert torch.allclose(act(policy), expected.clamp(low, high), atol=1e-6)
    assert levels("exponential", 3, 0.05, 1.0) == pytest.approx([1, 0.2236, 0.05, 0], abs=1e-4)


def test_the_denoiser_tends_to_its_input_at_low_noise():
    policy = fitted(BESO(**GPT))
    window, actions = policy.play.probe(3)
    for sigma in (1e-2, 1e-3, 1e-4):
        change = policy.denoised(actions, sigma, window, window.goals) - actions  # type: ignore[arg-type]
        assert change.abs().max() < 10 * sigma


@pytest.mark.parametrize("options", [MLP, GPT])
def test_guidance_one_is_the_conditional_model_and_zero_ignores_the_goal(options: dict):
    policy = fitted(BESO(goal_dropout=0.1, **options))
    other = (0.92, 0.3)
    free, blind = policy.with_sampling(guidance=0.0), act(policy, goal=None)
    assert torch.equal(act(free), act(free, goal=other)) and torch.equal(act(free), blind)
    assert not torch.equal(act(policy), act(policy, goal=other)) and not torch.equal(act(policy), blind)
    window = policy.play.look(torch.tensor([[0.2, 0.5]]), other, None)
    x = torch.tensor([[0.1, 0.2]])
    with_goal, without = (policy.with_sampling(guidance=g).denoise(x, 0.3, window) for g in (1.0, 0.0))
    for strength in (0.5, 1.5, 3.0):
        found = policy.with_sampling(guidance=strength).denoise(x, 0.3, window)
        assert torch.allclose(found, without + strength * (with_goal - without), atol=1e-6)
    nearly = policy.with_sampling(guidance=1 + 1e-7)
    assert torch.allclose(act(nearly), act(policy), atol=1e-5)


def test_without_goal_dropout_there_is_no_guidance_and_no_acting_without_a_goal():
    policy = fitted(BESO(**MLP), 0)
    with pytest.raises(TelosError, match="goal_dropout"):
        policy.with_sampling(guidance=1.5)
    with pytest.raises(TelosError, match="needs a goal"):
        act(policy, goal=None)
    with pytest.raises(TelosError, match="goal_dropout"):
        BESO(guidance=1.5, **MLP).fit(data(), steps=1, device="cpu")
    with pytest.raises(TelosError, match="generator"):
        policy.act(torch.zeros(1, 2), goal=(0.9, 0.5))


def test_sampling_is_changed_without_training_and_without_touching_the_original():
    policy = fitted(BESO(**MLP))
    before = act(policy)
    for changes in (
        {"steps": 10}, {"sampler": "heun"}, {"sampler": "dpmpp_2m", "schedule": "karras"}, {"sigma_min": 0.1},
        {"sampler": "euler", "churn": 5.0}, {"sampler": "euler_ancestral"}, {"sigma_max": 0.5},
    ):  # fmt: skip
        other = policy.with_sampling(**changes)
        assert not torch.equal(act(other), before), changes
        assert next(other.parameters()) is next(policy.parameters())
    assert torch.equal(act(policy), before) and policy.sampling.steps == 3
    for wrong in ({"steps": 0}, {"sigma_max": 1.5}, {"sigma_min": 0.0}, {"churn": -1.0}):
        with pytest.raises(TelosError, match="out of range"):
            policy.with_sampling(**wrong)
    for wrong in ({"sampler": "magic"}, {"schedule": "magic"}, {"n": 3}):
        with pytest.raises(TelosError, match="no"):
            policy.with_sampling(**wrong)


def test_only_the_newest_action_is_noise_and_the_past_is_as_executed():
    policy = fitted(BESO(**GPT))
    observations = torch.tensor([[0.2, 0.5], [0.7, 0.8]])
    state, rng = None, Rng(5).torch()
    for _ in range(3):
        done = policy.act(observations, goal=(0.9, 0.5), state=state, rng=rng)
        assert torch.allclose(done.state["actions"][:, -1], policy.play.actions(done.action), atol=1e-6)
        assert (done.action >= torch.tensor(policy.low)).all() and (done.action <= torch.tensor(policy.high)).all()
        state = done.state
    other = {**state, "actions": -state["actions"]}
    a, b = (policy.act(observations, goal=(0.9, 0.5), state=s, rng=Rng(1).torch()).action for s in (state, other))
    assert not torch.equal(a, b)


def test_goals_are_dropped_whole_or_by_element():
    for kind, shape in (("sample", (4000, 1, 1)), ("element", (4000, 1, 2))):
        mine = learner(BESO(goal_dropout=0.3, goal_dropout_kind=kind, **{**MLP, "batch_size": 4000}))  # type: ignore[arg-type]
        batch = mine.method.source(Spec(data(), {}, 1, torch.device("cpu"), Rng(0))).next(mine.behaviour, Rng(1))
        noised = mine.noised(batch, Rng(2))
        assert noised.kept.shape == shape and abs(noised.kept.float().mean() - 0.7) < 0.02
        assert noised.sigma.min() >= 0.05 and noised.sigma.max() <= 1.0 and noised.noise.shape == (4000, 1, 2)
    assert mine.noised(batch, Rng(2)).kept.float().mean(0).flatten().tolist() == pytest.approx([0.7, 0.7], abs=0.03)
    never = learner(BESO(**{**MLP, "batch_size": 4000}))
    assert never.noised(batch, Rng(2)).kept.all()


def test_a_missing_goal_is_zero_after_scaling():
    mine = learner(BESO(goal_length=2, **MLP))
    source = mine.method.source(Spec(data(), {}, 1, torch.device("cpu"), Rng(0)))
    batch = source.next(mine.behaviour, Rng(1))
    at_the_end = replace(batch, has_goal=torch.zeros_like(batch.has_goal))
    moved = replace(at_the_end, goals=at_the_end.goals + 3)
    first, second = learner(BESO(goal_length=2, **MLP)), learner(BESO(goal_length=2, **MLP))
    assert float(first.update(at_the_end, Rng(3))["loss"]) == float(second.update(moved, Rng(3))["loss"])
    assert float(mine.update(batch, Rng(3))["loss"]) != float(learner(mine.method).update(at_the_end, Rng(3))["loss"])


def test_sigma_data_is_measured_and_a_mismatch_is_noted():
    record = data(100)
    for scaling in ("minmax", "standardise", "none"):
        method = BESO(**{**MLP, "scaling": scaling})
        mine = learner(method, record)
        scaled = mine.policy.play.actions(record.actions)
        assert mine.policy.sigma_data == pytest.approx(float(scaled.var(0, correction=0).mean().sqrt()))
        notes = method.prepare(Spec(record, {}, 1, torch.device("cpu"), Rng(0))).notes
        assert ("noise" in notes) == (scaling == "standardise")  # std 1 and sigma_max 1
    assert learner(BESO(sigma_data=0.5, **MLP)).policy.sigma_data == 0.5
    off = BESO(sigma_data=3.0, sigma_max=9.0, **MLP).prepare(Spec(record, {}, 1, torch.device("cpu"), Rng(0)))
    assert "sigma_data" in off.notes["noise"]


def test_the_running_mean_of_the_weights_is_shipped():
    mine = learner(BESO(ema=0.5, **MLP))
    source = mine.method.source(Spec(data(), {}, 1, torch.device("cpu"), Rng(0)))
    mean = [p.detach().clone() for p in mine.net.parameters()]
    for step in range(12):
        mine.update(source.next(mine.behaviour, Rng(step)), Rng(100 + step))
        decay = min(0.5, (2 + step) / (11 + step))
        mean = [decay * m + (1 - decay) * p.detach() for m, p in zip(mean, mine.net.parameters())]
    for ours, shipped in zip(mean, mine.policy.net.parameters()):
        assert torch.allclose(ours, shipped, atol=1e-6) and not shipped.requires_grad
    assert not torch.allclose(mean[0], next(mine.net.parameters()))


def test_the_learning_rate_falls_by_a_hundredth_every_hundred_updates():
    mine = learner(BESO(**MLP))
    source = mine.method.source(Spec(data(), {}, 1, torch.device("cpu"), Rng(0)))
    batch = source.next(mine.behaviour, Rng(0))
    mine.updates = 250
    mine.update(batch, Rng(0))
    assert mine.optimiser.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.99**2)


@pytest.mark.parametrize("options", [{}, {"attention_dropout": 0.3}, {"goal_dropout": 0.2}])
def test_a_batch_in_parts_gives_the_same_step(options: dict):
    method = BESO(**{"attention_dropout": 0.0, "residual_dropout": 0.0, **GPT, **options})
    whole, parts = learner(method), learner(method)
    batch = method.source(Spec(data(), {}, 1, torch.device("cpu"), Rng(0))).next(whole.behaviour, Rng(0))
    first, second = whole.update(batch, Rng(5)), parts.update(batch, Rng(5), 7)
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)
    for a, b in zip(whole.net.parameters(), parts.net.parameters()):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-6)


@pytest.mark.parametrize("options", [MLP, GPT])
def test_saved_and_loaded_it_draws_the_same_actions_and_can_be_resampled(options: dict, tmp_path: Path):
    method = BESO(goal_dropout=0.1, observation_columns=(0, 1), goal_columns=(1,), **options)
    policy = fitted(method)
    loaded = load_product(policy.save(tmp_path / "product"))
    assert torch.equal(act(policy, goal=(0.5,)), act(loaded, goal=(0.5,)))
    a, b = (p.with_sampling(steps=7, guidance=2.0, sampler="dpmpp_2s") for p in (policy, loaded))
    assert torch.equal(act(a, goal=(0.5,)), act(b, goal=(0.5,)))
    again = load_product(b.save(tmp_path / "other"))
    assert again.sampling == b.sampling and again.sampling.steps == 7


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"goal_length": 0}, {"final_goals": 1.5}, {"goal_dropout": 1.0}, {"sigma_min": 2.0}],
)
def test_wrong_options_are_refused(options: dict):
    with pytest.raises(TelosError, match="out of range"):
        BESO(**{**MLP, **options}).fit(data(), steps=1, device="cpu")


def test_it_passes_the_obstacle_on_both_sides():
    record = bypass2d.dataset(200, Rng(1000))
    options = {**MLP, "hidden": (64, 64), "window": 4, "batch_size": 256, "learning_rate": 3e-3, "final_goals": 0.5}
    policy = BESO(goal_dropout=0.1, **options).fit(record, steps=500, seed=1000, device="cpu")
    three = bypass2d.attempt(policy, 200, Rng(1000)).measures()
    free = bypass2d.attempt(policy.with_sampling(guidance=0.0), 200, Rng(1000)).measures()
    assert three["success"] > 0.5 and 0.2 < three["above"] < 0.8
    assert free["success"] < three["success"] - 0.1
