import pytest
import torch
from value_toys import TABLE, chain, learner, optimal, parameters, states, train

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.dqn import DQN
from telos.methods.offline_rl.rem import REM
from telos.ops.q_learning import convex_weights

SMALL = {"hidden": (8,), "discount": 0.7, "batch_size": 10}


@pytest.mark.parametrize("double", [True, False])
def test_one_head_is_dqn(double: bool):
    data = chain()
    rem, dqn = (
        learner(REM(heads=1, double=double, target_every=3, **SMALL), data),
        learner(DQN(double=double, target_every=3, **SMALL), data),
    )
    assert torch.equal(parameters(rem.policy), parameters(dqn.policy))
    for step in range(8):
        ours, theirs = rem.update(data, Rng(step)), dqn.update(data, Rng(step))
        assert torch.allclose(ours["loss"], theirs["loss"], rtol=1e-6)
    assert torch.allclose(parameters(rem.policy), parameters(dqn.policy), atol=1e-7)
    assert torch.allclose(parameters(rem.target), parameters(dqn.target), atol=1e-7)


@pytest.mark.parametrize("double", [True, False])
def test_equal_heads_are_dqn(double: bool):
    data, heads = chain(), 6
    rem, dqn = learner(REM(heads=heads, double=double, **SMALL), data), learner(DQN(double=double, **SMALL), data)
    for theirs, ours in ((dqn.policy.net, rem.policy.net), (dqn.target, rem.target)):
        if ours is rem.target:  # another copy than the network, so that both are read
            theirs.layers[-1].bias.data += torch.tensor([0.5, -0.2])
        ours.layers[0].load_state_dict(theirs.layers[0].state_dict())
        ours.layers[1].weight.data = theirs.layers[1].weight.data.repeat(heads, 1)
        ours.layers[1].bias.data = theirs.layers[1].bias.data.repeat(heads)
    weights = convex_weights(torch.rand(heads, generator=Rng(1).torch()))
    assert torch.allclose(rem.targets(data, weights), dqn.targets(data), atol=1e-6)
    (ours, _), (theirs, _) = rem.loss(data, weights), dqn.loss(data)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    ours.backward()
    theirs.backward()
    first, whole = rem.policy.net.layers, dqn.policy.net.layers
    assert torch.allclose(first[0].weight.grad, whole[0].weight.grad, atol=1e-6)
    # Each head gets its share of DQN's gradient.
    shares = first[1].weight.grad.unflatten(0, (heads, 2))
    assert torch.allclose(shares, weights[:, None, None] * whole[1].weight.grad, atol=1e-6)


def test_a_table_of_many_heads_learns_the_optimal_value():
    data = chain()
    mine = train(learner(REM(heads=20, **TABLE), data), data, 900)
    assert torch.allclose(mine.policy(states()), optimal(), atol=0.05)
    # Every mixture satisfies the Bellman equation, so every head does.
    heads = mine.policy.head_values(mine.policy.net(states()))
    assert torch.allclose(heads, optimal()[:, None].expand(-1, 20, -1), atol=0.15)


def test_updates_draw_other_mixtures_and_parts_share_one():
    data = chain(4, 4)
    losses = {learner(REM(heads=7, **SMALL), data).update(data, Rng(step))["loss"].item() for step in range(4)}
    assert len(losses) == 4
    whole, parts = learner(REM(heads=7, **SMALL), data), learner(REM(heads=7, **SMALL), data)
    for step in range(3):
        whole.update(data, Rng(step), 1)
        parts.update(data, Rng(step), 8)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-6)


def test_what_it_cannot_learn_from_is_refused():
    data = Transitions.validated(
        **{**chain().columns(), "actions": torch.zeros(10, 1)}, action_space=Box((-1.0,), (1.0,))
    )
    with pytest.raises(TelosError, match="REM needs discrete actions"):
        REM().fit(data, steps=1)
    with pytest.raises(TelosError, match="heads is out of range"):
        REM(heads=0).fit(chain(), steps=1)
