import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.methods.offline_rl.prdc import PRDC, SEARCHES, DatasetAnchor, PRDCLearner, actor_loss
from telos.methods.offline_rl.td3_bc import TD3BC, TD3BCLearner
from telos.nets.critics import EnsembleQ
from telos.ops.neighbours import NearestRows
from telos.ops.values import td_target
from telos.worlds import lineworld

SMALL = {"hidden": (16,), "batch_size": 32}


def transitions(rows: int = 300, bound: float = 1.0) -> Transitions:
    rng = Rng(1000).torch()
    return Transitions.validated(
        observations=torch.randn(rows, 3, generator=rng),
        actions=bound * (2 * torch.rand(rows, 2, generator=rng) - 1),
        rewards=torch.randn(rows, generator=rng),
        next_observations=torch.randn(rows, 3, generator=rng),
        terminated=torch.rand(rows, generator=rng) < 0.1,
        truncated=torch.rand(rows, generator=rng) < 0.1,
        action_space=Box((-bound,) * 2, (bound,) * 2),
    )


def learner(method: PRDC, data: Transitions) -> PRDCLearner:
    spec = method.prepare(Spec(data, {}, 100, torch.device("cpu"), Rng(0)))
    return method.learner(spec, Rng(0))


def parameters(policy: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def pairs(rows: int = 200) -> tuple[Tensor, Tensor]:
    rng = Rng(1001).torch()
    return torch.randn(rows, 3, generator=rng), 2 * torch.rand(rows, 2, generator=rng) - 1


def anchor(states: Tensor, actions: Tensor, beta: float, k: int = 1, search: str = "kdtree") -> DatasetAnchor:
    return DatasetAnchor(states, actions, beta, k, torch.ones(2), search)


@pytest.mark.parametrize("search", ["kdtree", "brute", "auto"])
def test_with_a_large_beta_the_anchor_is_the_recorded_action(search: str):
    states, actions = pairs()
    found = anchor(states, actions, beta=1e3, search=search)(states, -actions, actions)
    assert torch.equal(found, actions)


def test_with_a_large_beta_training_is_that_of_td3_bc_bit_for_bit():
    data = transitions()
    spec = Spec(data, {}, 100, torch.device("cpu"), Rng(0))
    other = TD3BC(**SMALL)
    baseline = TD3BCLearner(other, other.prepare(spec).data, Rng(0))
    mine = learner(PRDC(beta=1e3, **SMALL), data)
    table = learner(PRDC(regulariser="bc", **SMALL), data)
    for step in range(6):
        batch = data[torch.randint(300, (32,), generator=Rng(step).torch())]
        for each in (baseline, mine, table):
            each.update(batch, Rng(0).at(step))
    assert torch.equal(parameters(mine.policy), parameters(baseline.policy))
    assert torch.equal(parameters(table.policy), parameters(baseline.policy))
    assert torch.equal(parameters(mine.critic), parameters(baseline.critic))


def test_with_beta_zero_the_penalty_is_the_distance_to_the_set_of_recorded_actions():
    states, actions = pairs()
    rng = Rng(1002).torch()
    queries = 3 * torch.rand(50, 2, generator=rng) - 1.5
    found = anchor(states, actions, beta=0.0)(torch.randn(50, 3, generator=rng), queries, queries)
    closest = (queries[:, None] - actions).square().sum(-1).amin(1)
    _, penalty, count = actor_loss(torch.zeros(50), queries, found, torch.tensor(1.0), torch.ones(2))
    # The mean over two dimensions is half the squared distance.
    assert torch.isclose(penalty, closest.sum() / 2, rtol=1e-5) and count == 50


def test_on_a_recorded_pair_penalty_and_gradient_are_zero():
    states, actions = pairs()
    mine = actions.clone().requires_grad_()
    found = anchor(states, actions, beta=2.0)(states, mine.detach(), actions)
    _, penalty, _ = actor_loss(torch.zeros(200), mine, found, torch.tensor(1.0), torch.ones(2))
    penalty.backward()
    assert penalty.item() == 0.0 and mine.grad is not None and mine.grad.abs().max().item() == 0.0


@pytest.mark.parametrize("search", ["kdtree", "brute"])
def test_permuting_or_duplicating_the_data_changes_nothing(search: str):
    states, actions = pairs()
    rng = Rng(1003).torch()
    queries = torch.randn(64, 3, generator=rng), 2 * torch.rand(64, 2, generator=rng) - 1
    expected = anchor(states, actions, 2.0, search=search)(*queries, queries[1])
    order = torch.randperm(200, generator=rng)
    twice = torch.cat([order, order])
    for rows in (order, twice):
        assert torch.equal(expected, anchor(states[rows], actions[rows], 2.0, search=search)(*queries, queries[1]))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("search", ["kdtree", "brute", "auto"])
@pytest.mark.parametrize(("rows", "sizes"), [(3, (1, 1)), (3001, (3, 2)), (9001, (17, 6))])
def test_every_search_finds_the_nearest_rows(search: str, k: int, rows: int, sizes: tuple[int, int]):
    rng = Rng(1004).torch()
    states, actions = (torch.randn(rows, size, generator=rng) for size in sizes)
    queries = [torch.randn(64, size, generator=rng) for size in sizes]
    mine = DatasetAnchor(states, actions, 2.0, k, torch.ones(sizes[1]), search)
    keys, data = mine.rows(*queries), mine.rows(states, actions)
    before, expected = data.clone(), (keys[:, None].double() - data.double()).norm(dim=-1).argsort(-1)[:, :k]
    assert torch.equal(mine.search(keys, k), expected)
    assert torch.equal(SEARCHES[search](data)(keys, k), expected) and torch.equal(data, before)


@pytest.mark.parametrize("search", ["kdtree", "brute"])
def test_of_rows_at_equal_distance_any_is_right(search: str):
    rng = Rng(1005).torch()
    data, keys = torch.randint(4, (9001, 2), generator=rng).float(), 3 * torch.rand(64, 2, generator=rng)
    every = (keys[:, None].double() - data.double()).norm(dim=-1)
    found = SEARCHES[search](data)(keys, 5)
    assert torch.equal(every.gather(1, found), every.sort(-1).values[:, :5])


def test_auto_is_the_tree_in_few_dimensions_only():
    few, many = (SEARCHES["auto"](torch.randn(20, width, generator=Rng(0).torch())) for width in (12, 13))
    assert not isinstance(few, NearestRows) and isinstance(many, NearestRows)


def test_k_neighbours_are_averaged():
    states = torch.zeros(3, 3)
    actions = torch.tensor([[0.0, 0.0], [0.2, 0.0], [1.0, 1.0]])
    found = anchor(states, actions, 2.0, k=2)(states[:1], torch.tensor([[0.05, 0.0]]), actions[:1])
    assert torch.allclose(found, torch.tensor([[0.1, 0.0]]))


def test_faiss_agrees_or_its_absence_is_explained():
    states, actions = pairs()
    if importlib.util.find_spec("faiss") is None:
        with pytest.raises(TelosError, match="faiss-cpu"):
            anchor(states, actions, 2.0, search="faiss")
    else:
        queries = actions.flip(0)
        expected = anchor(states, actions, 2.0)(states, queries, queries)
        assert torch.equal(anchor(states, actions, 2.0, search="faiss")(states, queries, queries), expected)


def test_rescaled_actions_make_units_of_actions_irrelevant():
    # The same data in actions 10 times larger: the policy's penalty and neighbours are the same.
    small, large = transitions(), transitions(bound=10.0)
    assert torch.allclose(10 * small.actions, large.actions)
    first = learner(PRDC(rescale_actions=True, **SMALL), small)
    second = learner(PRDC(rescale_actions=True, **SMALL), large)
    unscaled = learner(PRDC(**SMALL), large)
    states = first.policy.normaliser(small.observations[:50])
    queries = first.policy(states).detach()
    a = first.anchor(states, queries, small.actions[:50])
    b = second.anchor(states, 10 * queries, large.actions[:50])
    c = unscaled.anchor(states, 10 * queries, large.actions[:50])
    assert torch.allclose(10 * a, b) and not torch.allclose(10 * a, c)


def test_actor_loss_by_hand():
    q, mine = torch.tensor([1.0, 3.0]), torch.tensor([[0.5], [0.0]])
    loss, penalty, count = actor_loss(q, mine, torch.tensor([[0.0], [1.0]]), torch.tensor(1.25), torch.tensor([2.0]))
    assert (penalty.item(), count) == (0.0625 + 0.25, 2)
    assert loss.item() == -1.25 * 4 + 0.3125


def test_lambda_is_a_statistic_of_the_whole_batch_so_parts_agree():
    data = transitions()
    whole, parts = learner(PRDC(**SMALL), data), learner(PRDC(**SMALL), data)
    batch = data[:32]
    first, second = whole.update(batch, Rng(5), 1), parts.update(batch, Rng(5), 8)
    first, second = whole.update(batch, Rng(6), 1), parts.update(batch, Rng(6), 8)
    assert set(first) == {"critic_loss", "actor_loss", "penalty", "q"}
    for name, value in first.items():
        assert abs(float(value) - float(second[name])) < 1e-5, name
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-5)


def test_targets_read_terminated_only_and_transform_rewards():
    data = transitions(rows=4)
    flags = {"terminated": torch.tensor([True, False, True, False]), "truncated": torch.tensor([0, 0, 1, 1]).bool()}
    data = Transitions.validated(**(data.columns() | flags), action_space=data.action_space)
    method = PRDC(reward_scale=10.0, reward_shift=-1.0, discount=0.9, policy_noise=0.0, **SMALL)
    mine = learner(method, data)
    states = mine.policy.normaliser(data.next_observations)
    values = mine.target_critic(states, mine.target_policy(states)).amin(0)
    rewards = 10 * data.rewards - 1
    expected = torch.stack([rewards[0], rewards[1] + 0.9 * values[1], rewards[2], rewards[3] + 0.9 * values[3]])
    got = mine.targets(data, torch.randn(4, 2, generator=Rng(1).torch()))
    assert torch.allclose(got, expected) and torch.allclose(got, td_target(rewards, data.terminated, values, 0.9))
    assert values.abs().min() > 1e-3


def test_policy_and_targets_move_every_second_update_only():
    data = transitions()
    mine = learner(PRDC(tau=0.1, **SMALL), data)
    policy, targets = parameters(mine.policy), parameters(mine.target_critic)
    mine.update(data[:32], Rng(1))
    assert torch.equal(policy, parameters(mine.policy)) and torch.equal(targets, parameters(mine.target_critic))
    mine.update(data[:32], Rng(2))
    assert not torch.equal(policy, parameters(mine.policy))
    assert torch.allclose(parameters(mine.target_critic), 0.9 * targets + 0.1 * parameters(mine.critic), atol=1e-7)
    assert torch.allclose(parameters(mine.target_policy), 0.9 * policy + 0.1 * parameters(mine.policy), atol=1e-7)


def test_the_policys_step_leaves_no_gradient_in_the_critic():
    mine = learner(PRDC(**SMALL), transitions())
    mine.improve_policy([transitions()[:32]], 32)
    assert isinstance(mine.critic, EnsembleQ) and all(p.grad is None for p in mine.critic.parameters())


def test_wrong_options_and_data_are_refused():
    data = transitions(rows=20)
    with pytest.raises(TelosError, match="1 to 20"):
        PRDC(k=21).fit(data, steps=1)
    with pytest.raises(TelosError, match="beta"):
        PRDC(beta=-1.0).fit(data, steps=1)
    discrete = Transitions.validated(
        **(data.columns() | {"actions": torch.zeros(20, dtype=torch.int64)}), action_space=Discrete(2)
    )
    with pytest.raises(TelosError, match="continuous"):
        PRDC().fit(discrete, steps=1)


def test_a_killed_run_resumes_bit_for_bit_and_the_product_loads(tmp_path: Path):
    data, method = transitions(), PRDC(**SMALL)
    whole = method.fit(data, steps=30, seed=3, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 30, "seed": 3, "device": "cpu", "out": tmp_path / "run", "checkpoint_every": 7}
    with pytest.raises(KeyboardInterrupt):
        method.fit(data, **run, evaluate=kill, evaluate_every=25)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["main-000000021"]
    resumed = method.fit(data, **run, resume=True)
    assert torch.equal(parameters(whole), parameters(resumed))
    loaded = load_product(tmp_path / "run")
    assert torch.equal(loaded.act(data.observations).action, whole.act(data.observations).action)
    assert not torch.equal(parameters(whole), parameters(method.fit(data, steps=30, seed=4, device="cpu")))


def test_training_touches_no_global_generator():
    before = torch.get_rng_state()
    PRDC(**SMALL).fit(transitions(), steps=3, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_it_walks_past_wrong_actions_that_td3_bc_copies():
    data = lineworld.dataset(1000, Rng(1000))
    options = {"hidden": (32, 32), "learning_rate": 3e-3, "batch_size": 64, "tau": 0.02, "discount": 0.95}
    mine = lineworld.reach(PRDC(**options).fit(data, steps=800, seed=1000, device="cpu"))
    copy = lineworld.reach(TD3BC(**options).fit(data, steps=800, seed=1000, device="cpu"))
    assert (mine["reached"], mine["crashed"], copy["reached"]) == (1.0, 0.0, 0.0)
