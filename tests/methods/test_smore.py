"""SMORe: closed forms on a chain, the collapse without q, the dual's slope, shifts, permutations, what it learns."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.core.sources import Both
from telos.data.goals import GoalSteps
from telos.data.records import Box, Discrete, Transitions
from telos.methods.goals.smore import LOSSES, SMORe, SMOReLearner, entered_rows, slope_penalty
from telos.methods.goals.smore_variants import constant, expectiles, newton, policy, solve, solve_rewards
from telos.nets.policies import BoxScale
from telos.worlds import four_rooms as rooms
from telos.worlds import four_rooms_tables as tables

SMALL = {"hidden": (16,), "batch_size": 32, "learning_rate": 1e-3}


def plane(rows: int = 400) -> Transitions:
    """Random moves in the square [-1, 1]^2, in episodes of 20: s' = clip(s + 0.2 a)."""
    generator = Rng(1000).torch()
    moves = 2 * torch.rand(rows, 2, generator=generator) - 1
    states, nexts = torch.zeros(rows, 2), torch.zeros(rows, 2)
    for t in range(rows):
        states[t] = 2 * torch.rand(2, generator=generator) - 1 if t % 20 == 0 else nexts[t - 1]
        nexts[t] = (states[t] + 0.2 * moves[t]).clamp(-1, 1)
    return Transitions.validated(
        observations=states, actions=moves, rewards=torch.zeros(rows), next_observations=nexts,
        terminated=torch.zeros(rows), truncated=torch.arange(rows) % 20 == 19,
        action_space=Box((-1.0, -1.0), (1.0, 1.0)),
    )  # fmt: skip


def asked() -> Transitions:
    """The plane with a goal recorded for each episode, in columns 2 and 3: where its tenth step leads."""
    data = plane()
    goals = data.next_observations[9::20].repeat_interleave(20, 0)
    return dataclasses.replace(
        data, observations=torch.cat([data.observations, goals], -1),
        next_observations=torch.cat([data.next_observations, goals], -1),
    )  # fmt: skip


ASKED = {"observation_columns": (0, 1), "goal_columns": (0, 1), "desired_columns": (2, 3)}


def spec(method: SMORe, data: Transitions, steps: int = 10) -> Spec:
    return method.prepare(Spec(data, {}, steps, torch.device("cpu"), Rng(0)))


def learner(data: Transitions, **options: object) -> SMOReLearner:
    method = SMORe(**{**SMALL, **options})  # type: ignore[arg-type]
    return method.learner(spec(method, data), Rng(0))


def batch(method: SMORe, data: Transitions) -> tuple[GoalSteps, GoalSteps]:
    drawn = method.source(spec(method, data)).next(lambda: None, Rng(1))  # type: ignore[arg-type, return-value]
    assert isinstance(drawn.first, GoalSteps) and isinstance(drawn.second, GoalSteps)
    return drawn.first, drawn.second


def line(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A chain of n states with both moves, every (state, move, goal) equally often: where moves lead, rho and q."""
    nexts = torch.stack([(torch.arange(n) - 1).clamp(min=0), (torch.arange(n) + 1).clamp(max=n - 1)], 1)
    enters = torch.nn.functional.one_hot(nexts, n).double()
    return nexts, torch.full((n, 2, n), 1 / (2 * n * n)).double(), enters / enters.sum()


# The dossier's checks.


@pytest.mark.parametrize("discount", [0.8, 0.95])
def test_scores_at_a_distance_by_the_formula(discount: float):
    # Steps into goals are left out of rho, and M is the maximum over all moves: tau -> 1 and full coverage.
    nexts, rho, q = line(6)
    rho = torch.where(q > 0, 0.0, rho)
    method = SMORe(discount=discount)
    scores = torch.zeros_like(rho)
    for _ in range(400):
        scores = newton(method, scores, discount * scores.amax(1)[nexts], rho, q)
    apart = (nexts[:, :, None] - torch.arange(6)).abs() + 1
    wanted = 2 / (1 - discount) * (2 * discount ** (apart.double() - 1) - 1)
    assert (scores - wanted).abs().max() < 2e-3 * 2 / (1 - discount)  # the weak term 1e-4 (1 - discount) S^2
    assert torch.equal(scores.argmax(1)[apart.amin(1) > 1], apart.argmin(1)[apart.amin(1) > 1])


def test_at_equal_frequency_the_goals_step_is_the_weighted_mean_of_both_targets():
    nexts, _, q = line(5)
    method = SMORe(discount=0.9)
    values = torch.linspace(-20, 20, 25).double().view(5, 5)
    later = 0.9 * values[nexts]
    found = newton(method, torch.zeros_like(q), later, q, q)[q > 0]
    at_goal = later[q > 0]
    mean = (2 / (1 - 0.9) + 0.5 * (-2 + at_goal)) / (1.5 + 1e-5)
    assert torch.allclose(found, mean, atol=1e-9)


@pytest.mark.parametrize(("bonus", "discount"), [(2.0, 0.95), (0.5, 0.9)])
def test_without_q_the_stable_loss_collapses(bonus: float, discount: float):
    nexts, rho, q = line(6)
    method = SMORe(bonus=bonus, discount=discount)
    found = solve(method, rho, 0 * q, nexts, sweeps=300)
    assert torch.allclose(found.scores, torch.tensor(-bonus / (1 - discount)).double(), rtol=1e-3)
    assert constant(method) == pytest.approx(-bonus / (1 - discount), rel=1e-3)
    # So every recorded action weighs the same.
    shares = policy(found, rho, 3.0, 100.0)
    assert torch.allclose(shares, rho, rtol=1e-2)


@pytest.mark.parametrize("mixture", [0.1, 0.5, 0.9, 1.0])
def test_chi2_is_stationary_at_two_above_the_next_value_for_every_mixture(mixture: float):
    method, at_goal = SMORe(loss="chi2", mixture=mixture), LOSSES["chi2"][0]
    later = torch.tensor([-3.0, 0.0, 7.0])
    for shift in (-1.0, 0.0, 2.0, 5.0):
        scores = (later + shift).requires_grad_()
        (slope,) = torch.autograd.grad(at_goal(scores, later, method).sum(), scores)
        assert torch.allclose(slope, torch.full((3,), -mixture + mixture / 2 * shift), atol=1e-6)


def test_chi2_sums_to_the_dual_with_its_mixture():
    # b (1 - g) E_rho S + E_Mix f*(d) - (1 - b) E_rho d, f*(x) = x + x^2 / 4, written out for one step of each.
    method, (at_goal, elsewhere) = SMORe(loss="chi2", mixture=0.3, discount=0.9), LOSSES["chi2"]
    s, later = torch.tensor([1.3, -0.4]), torch.tensor([0.2, 2.0])
    d = later - s
    dual = 0.3 * 0.1 * s[1] + 0.3 * (d[0] + d[0] ** 2 / 4) + 0.7 * (d[1] + d[1] ** 2 / 4) - 0.7 * d[1]
    assert torch.isclose(at_goal(s[0], later[0], method) + elsewhere(s[1], later[1], method), dual)


def test_a_constant_leaves_the_weights_unchanged():
    nexts, rho, q = line(6)
    found = solve(SMORe(discount=0.9), rho, q, nexts, sweeps=50)
    moved = dataclasses.replace(found, scores=found.scores + 17.0, values=found.values + 17.0)
    assert torch.allclose(policy(moved, rho, 3.0, 100.0), policy(found, rho, 3.0, 100.0))


@pytest.mark.parametrize("loss", [*LOSSES])
def test_goals_permuted_permute_scores_and_policy(loss: str):
    nexts, rho, q = line(6)
    rho = rho * (1 + torch.rand(rho.shape, generator=Rng(1000).torch(), dtype=torch.float64))
    method, order = SMORe(loss=loss, discount=0.9), torch.tensor([3, 0, 5, 1, 4, 2])  # type: ignore[arg-type]
    found, permuted = (solve(method, a, b, nexts, sweeps=50) for a, b in ((rho, q), (rho[..., order], q[..., order])))
    assert torch.allclose(permuted.scores, found.scores[..., order])
    shares = [policy(t, r, 3.0, 100.0) for t, r in ((permuted, rho[..., order]), (found, rho))]
    assert torch.allclose(shares[0], shares[1][..., order])


def test_goal_columns_swapped_in_data_and_weights_swap_nothing_else():
    # The same in the networks: swapping the coordinates of goals, and the weights that read them.
    mine = learner(plane())
    rho, q = batch(mine.method, plane())
    before = mine.losses(rho, q)
    nets = [mine.score.net.net.weights[0], mine.target_score.net.net.weights[0]]  # type: ignore[union-attr]
    with torch.no_grad():
        for weight in nets:
            weight[:, [2, 3]] = weight[:, [3, 2]]
        for weight in (mine.value.net.layers[0].weight, mine.policy.actor.net.layers[0].weight):
            weight[:, [2, 3]] = weight[:, [3, 2]]  # type: ignore[index]
    swapped = (dataclasses.replace(part, goals=part.goals[:, [1, 0]]) for part in (rho, q))
    for name, loss in mine.losses(*swapped).items():
        assert torch.isclose(loss, before[name], rtol=1e-4), name


# Losses and samples by hand.


def test_the_losses_are_the_equations():
    method = SMORe(discount=0.9, bonus=1.5, mixture=0.4)
    s, later = torch.tensor([0.7]), torch.tensor([-2.0])
    wanted = {
        "stable": ((0.7 - 15) ** 2, 0.5 * (-2 - 1.5 - 0.7) ** 2 + 1e-5 * 0.49),
        "chi2": (0.4 * (-2.7 + 2.7**2 / 4), 0.4 * 0.1 * 0.7 + 0.6 * 2.7**2 / 4),
        "code_original": (-0.7, 0.5 * 2.7**2 + 1e-4 * 0.7),
    }
    for name, numbers in wanted.items():
        assert [float(term(s, later, method)) for term in LOSSES[name]] == pytest.approx(numbers, rel=1e-5), name


def test_the_learners_losses_are_the_equations_and_nothing_terminates():
    data = dataclasses.replace(plane(), terminated=torch.ones(400, dtype=torch.bool))
    mine = learner(data, discount=0.9)
    rho, q = batch(SMORe(**SMALL), plane())  # type: ignore[arg-type]
    states, nexts = (torch.cat([o, rho.goals], -1) for o in (rho.observations, rho.next_observations))
    u = mine.target_score(states, rho.actions).amin(0) - mine.value(states)
    later = 0.9 * mine.value(nexts)
    s = mine.score(states, rho.actions)
    at_goal = mine.score(torch.cat([q.observations, q.goals], -1), q.actions)
    losses = mine.losses(rho, q)
    assert torch.isclose(losses["value_loss"], (torch.where(u < 0, 0.2, 0.8) * u**2).sum(), rtol=1e-4)
    assert torch.isclose(losses["q_loss"], (at_goal - 20).square().sum(), rtol=1e-4)
    assert torch.isclose(losses["rho_loss"], (0.5 * (later - 2 - s) ** 2 + 1e-5 * s**2).sum(), rtol=1e-4)
    weights = (3 * u).exp().clamp(max=100).detach()
    log_probs = mine.policy.actor.log_likelihood(states, rho.actions)  # type: ignore[operator]
    assert torch.isclose(losses["policy_loss"], -(weights * log_probs).sum(), rtol=1e-4)


def test_gradients_are_separate():
    mine = learner(plane(), gradient_penalty=1.0)
    losses = mine.losses(*batch(mine.method, plane()))
    every = [*mine.policy.parameters(), *mine.score.parameters(), *mine.value.parameters()]
    own = {"value_loss": mine.value, "q_loss": mine.score, "rho_loss": mine.score, "policy_loss": mine.policy}
    for name, module in own.items():
        grads = torch.autograd.grad(losses[name], every, retain_graph=True, allow_unused=True)
        inside = {id(p) for p in module.parameters()}
        assert [g is not None for g in grads] == [id(p) in inside for p in every], name


def test_the_gradient_penalty_is_one_sided_and_counts_half_widths():
    scale, actions = BoxScale((-2.0, 0.0), (2.0, 1.0)), torch.zeros(3, 2, requires_grad=True)
    slopes = torch.tensor([[0.2, 0.1], [2.0, 0.0], [0.0, 4.0]])
    scores = (actions * slopes).sum(-1).expand(2, -1)
    # In half widths (2, 0.5): norms .4, 4 and 2.
    total = slope_penalty(torch.stack([scores[0], scores[1] * 0]), actions, scale)
    assert float(total.detach()) == pytest.approx(9 + 1, rel=1e-3)


def test_q_holds_steps_that_enter_their_goals_and_rho_later_states():
    data = plane()
    rho, q = batch(SMORe(batch_size=300), data)
    assert torch.equal(q.goals, q.next_observations) and q.reached.all()
    row = (rho.observations[:, None] == data.observations).all(-1).float().argmax(1)
    goal = (rho.goals[:, None] == data.next_observations).all(-1).float().argmax(1)
    assert (goal >= row).all() and (goal // 20 == row // 20).all() and not rho.reached.all()


def test_recorded_goals_are_mixed_in_and_q_takes_those_that_were_entered():
    data = asked()
    method = SMORe(batch_size=2000, her_ratio=0.75, **ASKED)  # type: ignore[arg-type]
    entered = entered_rows(method, data)
    assert entered.sum() == 20 and entered[9::20].all()
    rho, q = batch(method, data)
    own = (rho.goals == rho.observations[:, 2:]).all(-1)
    assert 0.2 < own.float().mean() < 0.33  # a quarter, and chance hits in hindsight
    assert torch.equal(q.goals, q.next_observations[:, :2])
    tenth = (q.goals == q.observations[:, 2:]).all(-1)
    assert 0.25 < tenth.float().mean() < 0.33  # a quarter, and a twentieth of the others
    _, near = batch(dataclasses.replace(method, tolerance=0.3), data)
    apart = (near.goals - near.next_observations[:, :2]).norm(dim=-1)
    assert apart.max() <= 0.3 and (apart > 0).any()
    # Where no step ever came to its goal, all of q is in hindsight.
    away = dataclasses.replace(data, observations=data.observations + torch.tensor([0, 0, 9.0, 9.0]))
    assert not entered_rows(method, away).any()
    _, q = batch(method, away)
    assert torch.equal(q.goals, q.next_observations[:, :2])


def test_expectiles_are_means_maxima_and_what_is_missing():
    scores, shares = torch.tensor([[[1.0], [3.0], [9.0]]]).double(), torch.tensor([[[1.0], [1.0], [0.0]]]).double()
    assert float(expectiles(scores, shares, 0.5, 7.0)) == pytest.approx(2.0)
    assert float(expectiles(scores, shares, 0.9, 7.0)) == pytest.approx(0.1 + 0.9 * 3.0)
    assert float(expectiles(scores, 0 * shares, 0.9, 7.0)) == 7.0


def test_rewards_on_tables_are_discounted_sums():
    nexts, rho, _ = line(4)
    found = solve_rewards(torch.full_like(rho, -1.0), rho, nexts, 0.8, 0.9, sweeps=300)
    assert torch.allclose(found.scores, torch.tensor(-10.0).double(), atol=1e-6)


# What it learns.


@pytest.mark.parametrize("loss", [*LOSSES])
def test_in_four_rooms_tables_find_nearly_shortest_ways_and_cloning_does_not(loss: str):
    cells, moves, _ = rooms.walks(200, 100, Rng(1000).at("data"), expert=0.1)
    rho, q = tables.hindsight(cells, moves), tables.entering(cells, moves)
    starts, goals = tables.pairs()
    found = solve(SMORe(loss=loss, discount=0.95), rho, q, rooms.NEXT)  # type: ignore[arg-type]
    steps = tables.walked(policy(found, rho, 3.0, 100.0), 30)
    assert (steps <= 30).float().mean() > 0.95
    there = steps <= 30
    assert (steps[there] - rooms.DISTANCES[starts, goals][there]).float().mean() < 0.1
    assert (tables.walked(rho, 30) <= 30).float().mean() < 0.9


OPEN = {"hidden": (64,), "batch_size": 128, "learning_rate": 3e-3, "discount": 0.8, "tau": 0.05}


def headed(acting: object, goal: Tensor) -> float:
    """Mean cosine of actions with the goal's direction, from a grid of places."""
    grid = torch.cartesian_prod(torch.linspace(-0.6, 0.6, 5), torch.linspace(-0.6, 0.6, 5))
    actions = acting.act(grid, goal=goal).action  # type: ignore[attr-defined]
    return float(torch.cosine_similarity(actions, goal - grid).mean())


@pytest.mark.parametrize("options", [{}, {"extraction": "deterministic"}, {"loss": "chi2"}, {"gradient_penalty": 1.0}])
def test_from_random_moves_it_goes_where_the_goal_is(options: dict[str, object]):
    made = SMORe(**{**OPEN, **options}).fit(plane(2000), steps=250, seed=0, device="cpu")  # type: ignore[arg-type]
    corner = torch.tensor([0.9, 0.9])
    assert headed(made, corner) > 0.8 and headed(made, -corner) > 0.8


def test_discrete_actions_on_a_chain():
    nexts, _, _ = line(6)
    moves = torch.randint(2, (60, 12), generator=Rng(1000).torch())
    cells = [torch.arange(60) % 6]
    for t in range(12):
        cells.append(nexts[cells[-1], moves[:, t]])
    one_hot = torch.nn.functional.one_hot(torch.stack(cells, 1), 6).float()
    ends = torch.zeros(60, 12, dtype=torch.bool)
    ends[:, -1] = True
    data = Transitions.validated(
        observations=one_hot[:, :-1].flatten(0, 1), actions=moves.flatten(), rewards=torch.zeros(720),
        next_observations=one_hot[:, 1:].flatten(0, 1), terminated=torch.zeros(720), truncated=ends.flatten(),
        action_space=Discrete(2),
    )  # fmt: skip
    options = {**OPEN, "loss": "chi2", "temperature": 10.0, "schedule": "constant"}
    made = SMORe(**options).fit(data, steps=400, seed=0, device="cpu")  # type: ignore[arg-type]
    places = torch.eye(6)
    for goal in (0, 3, 5):
        others = torch.tensor([cell for cell in range(6) if cell != goal])
        found = made.act(places[others], goal=places[goal]).action
        assert torch.equal(found, (others < goal).long()), goal


def test_it_keeps_what_it_was_given(tmp_path: Path):
    method = SMORe(**SMALL, **ASKED, normalise=True)  # type: ignore[arg-type]
    made = method.fit(asked(), steps=5, seed=0, device="cpu")
    loaded = load_product(made.save(tmp_path / "product"))
    seen = asked().observations[:3]
    assert torch.equal(loaded.act(seen, goal=[0.5, 0.5]).action, made.act(seen, goal=[0.5, 0.5]).action)
    # Products of one row and of three may be rounded otherwise.
    one, three = made.act(seen[0], goal=[0.5, 0.5]).action, made.act(seen, goal=[0.5, 0.5]).action
    assert torch.allclose(one, three[0], rtol=1e-5, atol=1e-6)
    # Columns of recorded goals are not part of the state.
    moved = seen + torch.tensor([0.0, 0.0, 5.0, 5.0])
    assert torch.equal(made.act(moved, goal=[0.5, 0.5]).action, made.act(seen, goal=[0.5, 0.5]).action)
    assert made.log_prob(seen, torch.zeros(3, 2), goal=[0.5, 0.5]).shape == (3,)


def test_what_does_not_fit_is_refused():
    made = learner(plane()).policy
    for obs, goal, match in (
        ([0.0, 0.0], None, "needs a goal"), ([0.0], [0.0, 0.0], "observations"), ([0.0, 0.0], [0.0], "goal"),
        (torch.zeros(3, 2), torch.zeros(2, 2), "goals do not fit"),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=match):
            made.act(obs, goal=goal)
    discrete = dataclasses.replace(plane(), actions=torch.zeros(400, dtype=torch.int64), action_space=Discrete(2))
    for options, data, match in (
        ({"expectile": 1.0}, plane(), "expectile"), ({"discount": 1.0}, plane(), "discount"),
        ({"bonus": 0.0}, plane(), "bonus"), ({"goal_columns": (2,)}, plane(), "goal_columns"),
        ({**ASKED, "desired_columns": (2,)}, asked(), "another size"),
        ({"gradient_penalty": 1.0}, discrete, "discrete"), ({"extraction": "deterministic"}, discrete, "discrete"),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=match):
            SMORe(**options).fit(data, steps=1)  # type: ignore[arg-type]
    assert isinstance(Both(plane(), plane()).first, Transitions)
