import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.core.sources import Both
from telos.data.formats import save_npz
from telos.data.records import Box, Discrete, Transitions
from telos.methods.offline_rl.dual_rl import FDVL, FDVLLearner, ReCOIL, ReCOILLearner, dual_loss, ls_targets
from telos.methods.offline_rl.dual_rl_variants import (
    VIEWS,
    Finite,
    Problem,
    improve,
    minimise,
    objective,
    primal,
    visited,
)
from telos.nets.policies import CategoricalPolicy
from telos.nets.state_values import StateValue, TwinQ
from telos.ops.conjugates import CONJUGATES, exact_maximiser, gumbel_maximiser

SMALL = {"hidden": (16,), "batch_size": 32}


def transitions(rows: int = 300, discrete: bool = False, seed: int = 1000) -> Transitions:
    rng = Rng(seed).torch()
    observations, nexts = torch.randn((2, rows, 3), generator=rng)
    box = 4 * torch.rand(rows, 2, generator=rng) - torch.tensor([2.0, 3.0])
    return Transitions.validated(
        observations=observations,
        actions=torch.randint(3, (rows,), generator=rng) if discrete else box,
        rewards=torch.randn(rows, generator=rng),
        next_observations=nexts,
        terminated=torch.rand(rows, generator=rng) < 0.2,
        truncated=torch.rand(rows, generator=rng) < 0.1,
        action_space=Discrete(3) if discrete else Box((-2.0, -3.0), (2.0, 1.0)),
    )


def coin(rows: int = 400) -> Transitions:
    """One state, one step: action 0.5 pays 1, action -0.5 pays 0, equally often."""
    good = torch.arange(rows) % 2 == 0
    return Transitions.validated(
        observations=torch.zeros(rows, 1), actions=torch.where(good, 0.5, -0.5)[:, None], rewards=good.float(),
        next_observations=torch.zeros(rows, 1), terminated=torch.ones(rows), truncated=torch.zeros(rows),
        action_space=Box((-1.0,), (1.0,)),
    )  # fmt: skip


def learner(method, data: Transitions, steps: int = 100, **given):
    return method.learner(method.prepare(Spec(data, given, steps, torch.device("cpu"), Rng(0))), Rng(0))


def train(method, data: Transitions, steps: int, **given):
    spec = method.prepare(Spec(data, given, steps, torch.device("cpu"), Rng(0)))
    mine, source = method.learner(spec, Rng(0)), method.source(spec)
    for step in range(steps):
        mine.update(source.next(mine.behaviour, Rng(1).at(step)), Rng(0).at(step))
    return mine


def parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def finite(states: int = 4, actions: int = 2) -> Problem:
    """A random MDP, a behaviour that tries everything, and an expert that prefers one action."""
    rng = Rng(1000).torch()

    def shares(*shape: int, sharp: float = 1.0) -> Tensor:
        return (sharp * torch.randn(shape, generator=rng, dtype=torch.float64)).softmax(-1)

    rewards = torch.randn(states, actions, generator=rng, dtype=torch.float64)
    mdp = Finite(shares(states), shares(states, actions, states, sharp=2.0), rewards, 0.9)
    offline, expert = shares(states, actions), shares(states, actions, sharp=3.0)
    return Problem(mdp, mdp.visitation(offline), mdp.visitation(expert), alpha=2.0, share=0.4)


# The unifying view.


def policies() -> Tensor:
    return torch.randn((4, 2), generator=Rng(1001).torch(), dtype=torch.float64).softmax(-1)


def test_visitations_are_the_flow_of_the_policy():
    problem, policy = finite(), policies()
    d = problem.mdp.visitation(policy)
    inflow = 0.1 * problem.mdp.start + 0.9 * torch.einsum("sa,sat->t", d, problem.mdp.moves)
    assert abs(float(d.sum()) - 1) < 1e-12 and torch.allclose(d.sum(-1), inflow)
    assert torch.allclose(d / d.sum(-1, keepdim=True), policy)


@pytest.mark.parametrize("name", ["algaedice", "cql", "valuedice", "iqlearn", "opolo", "recoil"])
def test_for_a_fixed_policy_the_dual_is_the_primal(name: str):
    view, problem, policy = VIEWS[name], finite(), policies()
    values = minimise(view, problem, policy)
    assert abs(float(objective(view, problem, values, policy) - primal(view, problem, policy))) < 1e-6
    # And a bound from above anywhere else.
    assert objective(view, problem, values + policies() * 0.3, policy) > primal(view, problem, policy) + 1e-6


@pytest.mark.parametrize("name", ["optidice", "xql", "f_dvl_chi2", "smodice", "smodice_chi2"])
def test_dual_v_finds_the_best_visitation_itself(name: str):
    view, problem = VIEWS[name], finite()
    values = minimise(view, problem)
    d = visited(view, problem, values)
    policy = d / d.sum(-1, keepdim=True)
    assert torch.allclose(d, problem.mdp.visitation(policy), atol=1e-5)
    best = float(primal(view, problem, policy))
    assert abs(float(objective(view, problem, values)) - best) < 1e-5
    assert best > float(primal(view, problem, problem.offline / problem.offline.sum(-1, keepdim=True))) + 1e-3
    assert all(float(primal(view, problem, p)) < best for p in (policies(), torch.full((4, 2), 0.5).double()))


def test_cql_is_dual_q_with_chi2_written_out():
    # With the data a visitation, (1 - g) E_d0 V + g E_d^O V' telescopes into E_d^O V.
    problem, policy = finite(), policies()
    q = torch.randn((4, 2), generator=Rng(1002).torch(), dtype=torch.float64)
    d, states = problem.offline, (policy * q).sum(-1)
    errors = problem.mdp.backup(problem.mdp.rewards, states) - q
    conservative = d.sum(-1) @ states - (d * q).sum() + (d * errors.square()).sum() / (4 * problem.alpha)
    expected = conservative + (d * problem.mdp.rewards).sum()
    assert abs(float(objective(VIEWS["cql"], problem, q, policy) - expected)) < 1e-12


def test_recoil_without_other_data_is_iqlearn_and_the_learners_loss_is_the_finite_one():
    problem, policy = dataclasses.replace(finite(), alpha=1.0), policies()
    q = torch.randn((4, 2), generator=Rng(1002).torch(), dtype=torch.float64)
    alone = dataclasses.replace(problem, share=1.0)
    assert objective(VIEWS["recoil"], alone, q, policy) == objective(VIEWS["iqlearn"], problem, q, policy)
    # (6) with the expert's states first: expectations as weighted means over all pairs.
    states, zero = (policy * q).sum(-1), torch.zeros(4, 2, dtype=torch.float64)
    errors = problem.mdp.backup(zero, states) - q

    def weighted(values: Tensor, d: Tensor) -> Tensor:
        return (values * d * d.numel()).reshape(1, -1)

    at_policy, own = weighted(states[:, None].expand(4, 2), problem.expert), weighted(q, problem.expert)
    squares = [weighted(errors, d) * (d * d.numel()).rsqrt().reshape(1, -1) for d in (problem.offline, problem.expert)]
    got = dual_loss(at_policy, own, (squares[0], squares[1]), problem.share)
    assert abs(float(got - objective(VIEWS["recoil"], problem, q, policy))) < 1e-12


def test_xql_and_f_dvl_are_semi_gradients_of_dual_v():
    # (2) with d_0 the data's states and T V the fixed Q: V + alpha f*_p((Q - V) / alpha).
    q, v, alpha = torch.linspace(-3, 3, 61).double(), 0.4, 2.0
    for name in ("chi2", "rkl"):
        whole = v + CONJUGATES[name].positive(q - v)
        assert torch.allclose(2 * exact_maximiser(name, q - v, 0.5) + q, whole)
    # XQL's loss is reverse KL's with z one less: a shift of V by alpha, and what is free of V.
    z = (q - v) / alpha
    dual = v + alpha * CONJUGATES["rkl"].positive(z)
    assert torch.allclose(dual, alpha * gumbel_maximiser(alpha * (z - 1), alpha) + q)


def test_recoil_recovers_the_experts_visitation():
    problem = finite()
    found = problem.mdp.visitation(improve(VIEWS["recoil"], problem, steps=60, rate=0.3))
    assert float((found - problem.expert).abs().sum() / 2) < 0.02
    assert float((problem.offline - problem.expert).abs().sum() / 2) > 0.2


# f-DVL.


@pytest.mark.parametrize(
    ("f", "weight", "expected"),
    [("tv", 0.8, 1.0), ("rkl", 1.0, math.log((1 + math.e) / 2)), ("expectile", 0.8, 0.8)],
)
def test_on_a_coin_value_and_policy_are_the_closed_forms(f, weight: float, expected: float):
    # The weights are e^(beta (1 - V)) and e^(-beta V), so the policy's mean is tanh(beta / 2) / 2 whatever V.
    method = FDVL(f=f, weight=weight, hidden=(16,), learning_rate=1e-2, batch_size=64, tau=0.1, clip=None)
    mine = train(method, coin(), 250)
    q = mine.critic(torch.zeros(2, 1), torch.tensor([[0.5], [-0.5]]))
    assert torch.allclose(q, torch.tensor([1.0, 0.0]), atol=0.06)
    assert abs(mine.value(torch.zeros(1, 1)).item() - expected) < 0.08
    assert abs(mine.policy.act([0.0]).action.item() - 0.5 * math.tanh(1.5)) < 0.05


def test_losses_are_the_equations_with_terminated_rows_only_cut():
    data = transitions(64)
    mine = learner(FDVL(f="chi2", weight=0.7, discount=0.9, reward_scale=50.0, reward_shift=-1.0, **SMALL), data)
    drawn = mine.drawn(data, Rng(3))
    v, nexts = mine.value(data.observations), mine.value(data.next_observations)
    q = mine.critic(data.observations, data.actions)
    d = q.amin(0) - v
    by_hand = 0.7 * torch.maximum(d + d**2 / 4, torch.zeros(())) - 0.3 * d
    assert torch.allclose(mine.value_loss(drawn, torch.zeros(())), by_hand.mean())
    errors = q - (50 * data.rewards - 1 + 0.9 * torch.where(data.terminated, 0.0, nexts))
    huber = torch.where(errors.abs() <= 20, errors**2 / 2, 20 * errors.abs() - 200)
    assert torch.allclose(mine.critic_loss(drawn), huber.mean(1).sum()) and (errors.abs() > 20).any()
    weights = torch.exp(3 * d).clamp(max=100)
    assert torch.allclose(
        mine.policy_loss(drawn), -(weights * mine.policy.log_likelihood(data.observations, data.actions)).mean()
    )


def test_each_loss_reaches_its_own_network_only():
    mine = learner(FDVL(**SMALL), transitions())
    drawn = mine.drawn(transitions()[:32], Rng(0))
    own = {"value": mine.value_loss(drawn, torch.zeros(())), "policy": mine.policy_loss(drawn)}
    for name, loss in {**own, "critic": mine.critic_loss(drawn)}.items():
        for other in ("value", "policy", "critic", "target_critic"):
            for parameter in getattr(mine, other).parameters():
                parameter.grad = None
        loss.backward()
        for other in ("value", "policy", "critic", "target_critic"):
            assert (sum(p.grad is not None for p in getattr(mine, other).parameters()) > 0) == (other == name)


def test_the_policy_and_the_critic_read_the_value_just_updated():
    # With V moved by a huge step, the critic's loss of the same update already shows it.
    data = transitions()
    calm, wild = (learner(FDVL(f="tv", **SMALL), data) for _ in range(2))
    wild.value_optimiser.param_groups[0]["lr"] = 10.0
    a, b = calm.update(data[:32], Rng(0)), wild.update(data[:32], Rng(0))
    assert a["value_loss"] == b["value_loss"] and abs(float(a["critic_loss"]) - float(b["critic_loss"])) > 1


@pytest.mark.parametrize("discrete", [False, True])
def test_random_actions_fill_the_space_and_enter_the_value(discrete: bool):
    data = transitions(300, discrete)
    mine = learner(FDVL(random_actions=3, **SMALL), data)
    drawn = mine.drawn(data, Rng(0))
    actions = torch.stack(mine.random_actions(drawn.uniform))
    if discrete:
        assert actions.shape == (3, 300) and sorted(actions.unique().tolist()) == [0, 1, 2]
    else:
        low, high = torch.tensor([-2.0, -3.0]), torch.tensor([2.0, 1.0])
        assert actions.shape == (3, 300, 2) and (actions >= low).all() and (actions <= high).all()
        assert torch.allclose(actions.mean((0, 1)), (low + high) / 2, atol=0.1)
    d = mine.residuals(drawn)
    assert d.shape == (300, 4)
    expected = mine.target_critic(data.observations, actions[1]).amin(0) - mine.value(data.observations)
    assert torch.allclose(d[:, 2], expected)


def test_the_gradient_penalty_is_one_sided_and_in_half_widths():
    data = transitions()[:8]
    plain = learner(FDVL(hidden=(), batch_size=8), transitions())
    steep = learner(FDVL(hidden=(), batch_size=8, gradient_penalty=2.0), transitions())
    drawn = plain.drawn(data, Rng(0))
    assert torch.equal(plain.critic_loss(drawn), steep.critic_loss(drawn))  # slopes below 1 cost nothing
    with torch.no_grad():
        for mine in (plain, steep):
            mine.critic.net.net.weights[0][:, 3:, 0] = torch.tensor([[1.5, 2.0], [0.1, 0.2]])
    # Half widths are 2 and 2: slopes (3, 4) of norm 5, and (.2, .4).
    assert torch.isclose(steep.critic_loss(drawn) - plain.critic_loss(drawn), torch.tensor(2.0 * 16.0), rtol=1e-4)
    steep.critic_loss(drawn).backward()
    assert torch.isfinite(steep.critic.net.net.weights[0].grad).all()


@pytest.mark.parametrize(
    "options",
    [
        {"f": "rkl", "weight": 0.1, "random_actions": 2},
        {"f": "chi2", "value_dropout": 0.5, "value_updates": 2, "gradient_penalty": 1.0},
        {"f": "rkl", "exact": True},
    ],
)
def test_parts_agree_with_the_whole_for_every_option(options):
    data = transitions()
    whole, parts = (learner(FDVL(**options, **SMALL), data) for _ in range(2))
    for step in (5, 6):
        first, second = whole.update(data[:32], Rng(step), 1), parts.update(data[:32], Rng(step), 5)
        for name, value in first.items():
            assert abs(float(value) - float(second[name])) < 1e-4 * max(1.0, abs(float(value))), name
    assert torch.allclose(parameters(whole.value), parameters(parts.value), atol=1e-4)


def test_two_value_updates_are_two_steps():
    data = transitions()
    one, two = (learner(FDVL(value_updates=n, **SMALL), data) for n in (1, 2))
    one.update(data[:32], Rng(0))
    two.update(data[:32], Rng(0))
    steps = [next(iter(mine.value_optimiser.state.values()))["step"].item() for mine in (one, two)]
    assert steps == [1, 2]


def test_the_values_dropout_follows_its_draws_and_is_off_without():
    value = StateValue((3, 8, 8, 1), True, 0.5, Rng(0).torch())
    x = torch.randn(5, 3, generator=Rng(1).torch())
    assert value.units == 16 and torch.equal(value(x), value(x))
    assert torch.allclose(value(x, torch.zeros(5, 16)), value.net.layers[-1].bias.expand(5))
    assert not torch.allclose(value(x, torch.ones(5, 16)), value(x))
    assert StateValue((3, 8, 1), False, 0.0, Rng(0).torch()).units == 0


# ReCOIL.


def test_with_the_expert_alone_q_tends_to_the_highest_value():
    data = corridor(True)
    mine = train(ReCOIL(hidden=(), learning_rate=0.2, batch_size=16, discount=0.9), data, 400)
    q = mine.critic(data.observations, data.actions)
    assert torch.allclose(q, torch.full_like(q, 20.0), atol=1e-2)


def test_ls_targets_by_hand():
    targets, highest = ls_targets(torch.tensor([5.0, 5.0]), torch.tensor([False, True]), 0.9)
    assert abs(highest - 20) < 1e-9 and torch.allclose(targets, torch.tensor([2.5, -20.0]))
    # The lowest value is a fixed point of steps that lead nowhere.
    assert torch.allclose(ls_targets(torch.tensor([-20.0]), torch.tensor([False]), 0.9)[0], torch.tensor([-20.0]))


def test_critic_losses_are_the_equations():
    others, expert = transitions(32), transitions(32, seed=1001)
    mine = learner(ReCOIL(discount=0.9, mixture=0.3, **SMALL), others, expert=expert)
    drawn = mine.drawn(Both(others, expert), Rng(0))
    q, own = (mine.critic(records.observations, records.actions) for records in (others, expert))
    nexts = torch.where(others.terminated, -20.0, mine.value(others.next_observations))
    by_hand = ((own - 20) ** 2 / 2).mean(1).sum() + ((q + 2 - 0.9 * nexts) ** 2 / 2).mean(1).sum()
    assert torch.allclose(mine.critic_loss(drawn), by_hand, rtol=1e-5)
    errors = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]])
    got = dual_loss(torch.tensor([[4.0]]), torch.tensor([[1.0]]), errors, 0.3)
    assert abs(float(got) - (0.3 * 3 + (0.3 * 4 + 0.7 * 5) / 4)) < 1e-6
    alone = dual_loss(torch.tensor([[4.0]]), torch.tensor([[1.0]]), (None, errors[1]), 0.3)
    assert float(alone) == 3 + 4 / 4


def test_the_gap_of_values_enters_their_loss():
    others, expert = transitions(32), transitions(32, seed=1001)
    plain, gap = (learner(ReCOIL(value_gap=b, **SMALL), others, expert=expert) for b in (0.0, 0.5))
    drawn = plain.drawn(Both(others, expert), Rng(0))
    difference = plain.value(others.observations).mean() - plain.value(expert.observations).mean()
    got = gap.value_loss(drawn, torch.zeros(())) - plain.value_loss(drawn, torch.zeros(()))
    assert torch.isclose(got, 0.5 * difference, rtol=1e-4) and difference.abs() > 1e-3


def test_expected_values_are_exact_for_discrete_actions():
    critic = TwinQ(3, Discrete(4), (8,), Rng(0).torch())
    policy = CategoricalPolicy(3, 4, (8,), Rng(1).torch())
    states = torch.randn(6, 3, generator=Rng(2).torch())
    shares = policy.log_probs(states).exp()
    by_hand = sum(shares[:, k] * critic(states, torch.full((6,), k)) for k in range(4))
    got = critic.expected(policy, states, torch.zeros(6, 1))
    assert torch.allclose(got, by_hand) and got.shape == (2, 6)
    got.sum().backward()
    assert all(p.grad is None for p in policy.parameters()) and all(p.grad is not None for p in critic.parameters())


def corridor(expert: bool) -> Transitions:
    """Cells 0 to 5, moves left and right: the expert goes right from 2, the others move at random."""
    generator = Rng(1000).torch()
    cells = torch.arange(2, 5) if expert else torch.randint(6, (300,), generator=generator)
    moves = torch.ones(3, dtype=torch.int64) if expert else torch.randint(2, (300,), generator=generator)
    eye = torch.eye(6)
    return Transitions.validated(
        observations=eye[cells], actions=moves, rewards=torch.zeros(len(cells)),
        next_observations=eye[(cells + 2 * moves - 1).clamp(0, 5)], terminated=torch.zeros(len(cells)),
        truncated=torch.ones(len(cells)), action_space=Discrete(2),
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"maximiser": "gumbel", "weight": 1.0}, {"loss": "dual"}, {"loss": "dual", "first_states": "expert"}],
)
def test_recoil_finds_back_to_the_experts_path(options):
    slow = {"learning_rate": 0.05} if "loss" in options else {"learning_rate": 0.3}
    method = ReCOIL(hidden=(), batch_size=64, discount=0.9, tau=0.05, schedule="constant", **slow, **options)
    policy = method.fit(corridor(False), expert=corridor(True), steps=300, seed=1000, device="cpu")
    # Cells 0 and 1 are no expert's: only values can tell that right is the way there.
    assert policy.act(torch.eye(6)[:5]).action.tolist() == [1] * 5


def test_the_expert_may_be_a_file_and_must_fit(tmp_path: Path):
    data = transitions()
    file = save_npz(transitions(50, seed=1001), tmp_path / "expert.npz")
    method = ReCOIL(**SMALL)
    by_file = method.fit(data, expert=str(file), steps=3, device="cpu")
    in_memory = method.fit(data, expert=transitions(50, seed=1001), steps=3, device="cpu")
    assert torch.equal(parameters(by_file), parameters(in_memory))
    assert not torch.equal(parameters(by_file), parameters(method.fit(data, steps=3, device="cpu")))
    for wrong in (transitions(50, discrete=True), transitions(50)[:0]):
        with pytest.raises(TelosError, match="expert"):
            method.fit(data, expert=wrong, steps=1)


def test_a_run_with_an_experts_file_resumes(tmp_path: Path):
    import telos

    data, expert = (
        save_npz(transitions(), tmp_path / "data.npz"),
        save_npz(transitions(50, seed=1001), tmp_path / "e.npz"),
    )

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 12, "seed": 3, "device": "cpu", "expert": str(expert)}
    with pytest.raises(KeyboardInterrupt):
        ReCOIL(**SMALL).fit(str(data), **run, out=tmp_path / "run", checkpoint_every=4, evaluate=kill, evaluate_every=9)
    kept = expert.read_bytes()
    save_npz(transitions(50, seed=1002), expert)
    with pytest.raises(TelosError, match="its expert records differ"):
        telos.resume(tmp_path / "run")
    another: dict = {**run, "expert": transitions(50, seed=1002), "out": tmp_path / "run"}
    with pytest.raises(TelosError, match="its expert records differ"):
        ReCOIL(**SMALL).fit(str(data), **another, resume=True)
    expert.write_bytes(kept)
    resumed = telos.resume(tmp_path / "run")
    assert torch.equal(parameters(resumed), parameters(ReCOIL(**SMALL).fit(str(data), **run)))


def test_wrong_options_are_refused():
    for options, name in (
        ({"weight": 0.5}, "weight"), ({"f": "rkl", "weight": 0.0}, "weight"),
        ({"f": "expectile", "weight": 1.0}, "weight"), ({"f": "expectile", "exact": True}, "conjugate"),
        ({"random_actions": -1}, "random_actions"), ({"value_updates": 0}, "value_updates"),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=name):
            FDVL(**options, **SMALL).fit(transitions(), steps=1)
    for options in ({"weight": 1.0}, {"mixture": 0.0}, {"discount": 1.0}):
        with pytest.raises(TelosError, match=next(iter(options))):
            ReCOIL(**options, **SMALL).fit(transitions(), steps=1)


def test_learners_are_what_they_say():
    assert isinstance(learner(FDVL(**SMALL), transitions()), FDVLLearner)
    assert isinstance(learner(ReCOIL(**SMALL), transitions(discrete=True)), ReCOILLearner)
