"""The peers of our own writing do what telos does: the same losses and the same steps from the same weights."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import numpy as np
import pytest
import torch

import telos
from telos.core.method import Spec
from telos.core.numerics import PLAIN, using
from telos.core.rng import Rng
from telos.data.records import Box, Transitions

UPDATES = 4


def data(rows: int = 600) -> Transitions:
    import offline_data

    table = offline_data.columns(rows)
    table["terminated"] = np.arange(rows) % 7 == 0
    return Transitions.validated(**table, action_space=Box((-1.0,) * 6, (1.0,) * 6))


def learner_of(name: str, table: Transitions):
    import single_file

    method, rng = telos.use(name), Rng(0)
    spec = method.prepare(Spec(table, {}, single_file.STEPS, torch.device("cpu"), rng))
    return method.learner(spec, rng.at("init"))


def copy_layers(target, layers) -> None:
    """Weights (in, out) or (out, in) with biases into the linear layers of a Sequential."""
    linear = [module for module in target if isinstance(module, torch.nn.Linear)]
    for module, (weight, bias) in zip(linear, layers, strict=True):
        module.weight.data.copy_(weight)
        module.bias.data.copy_(bias)


def copy_weights(peer, learner) -> None:
    """telos's initial weights into the separate networks."""
    for i, (critic, target) in enumerate(zip(peer.critics, peer.targets, strict=True)):
        net = learner.critic.net
        layers = [(weight[i].T, bias[i, 0]) for weight, bias in zip(net.weights, net.biases, strict=True)]
        copy_layers(critic.net, layers)
        copy_layers(target.net, layers)
    pairs = [(peer.actor, learner.policy.net)]
    pairs += [(peer.value, learner.value)] if hasattr(peer, "value") else [(peer.slow_actor, learner.policy.net)]
    for module, net in pairs:
        copy_layers(module.net, [(layer.weight, layer.bias) for layer in net.layers])


@pytest.mark.parametrize("name", ["iql", "td3_bc", "prdc"])
def test_the_single_file_style_takes_the_same_steps(name):
    """Losses of four updates, so that Adam, targets and the learning rate's schedule are held together too."""
    import single_file

    torch.manual_seed(0)
    table = data()
    arrays = {key: column.numpy() for key, column in table.columns().items()}
    peer = single_file.METHODS[name](17, 6)
    replay = single_file.Replay(arrays, peer.normalise)
    peer.prepare(replay)
    with using(PLAIN):
        learner = learner_of(name, table)
        copy_weights(peer, learner)
        for update in range(UPDATES):
            index = Rng(update).at("rows").numpy().integers(0, len(table), 256)
            ours = learner.update(table[torch.from_numpy(index)], Rng(update))
            names = ("observations", "actions", "rewards", "next_observations", "terminated")
            batch = [torch.from_numpy(replay.arrays[key][index]).float() for key in names]
            noise = () if name == "iql" else (torch.randn(256, 6, generator=Rng(update).at("noise").torch()),)
            theirs = peer.train(batch, *noise)
            assert set(theirs) <= set(ours) and ("actor_loss" in theirs) == (name != "iql" and update % 2 == 1)
            for key, loss in theirs.items():
                assert loss == pytest.approx(float(ours[key]), rel=1e-4, abs=1e-5), (update, key)


JAX = """
import json, sys
import jax, numpy as np
import peer_jax
arrays = dict(np.load(sys.argv[2]))
batch = [arrays[n] for n in ("observations", "actions", "rewards", "next_observations", "terminated")]
def net(prefix):
    return [(arrays[f"{prefix}{i}w"], arrays[f"{prefix}{i}b"]) for i in range(3)]
critics, policy = net("critic"), net("policy")
with jax.default_matmul_precision("highest"):
    if sys.argv[1] == "iql":
        parameters = {"critics": critics, "value": net("value")}, {"net": policy, "log_std": np.zeros(6, np.float32)}
        print(json.dumps([float(peer_jax.IQL().loss(parameters, critics, batch))]))
    else:
        peer_jax.NOISE = 0.0
        state = {"targets": critics, "slow": policy}
        method = peer_jax.TD3BC()
        critic_loss = method.critic_loss(critics, state, batch, jax.random.key(0))
        print(json.dumps([float(critic_loss), float(method.policy_loss(policy, critics, batch))]))
"""


@pytest.mark.parametrize("name", ["iql", "td3_bc"])
def test_jax_has_the_same_losses(name, bench, tmp_path):
    """Where its environment was made: the losses of the first update, without noise."""
    python = bench / ".venv-jax" / "bin" / "python"
    if not (bench / ".venv-jax" / ".ready").is_file():
        pytest.skip("no environment of JAX; bench/run.py makes it")
    table = data(256)
    learner = learner_of(name, table)
    normalised, critic = learner.policy.normaliser, learner.critic.net
    arrays = {key: column.numpy() for key, column in table.columns().items()}
    arrays |= {key: normalised(torch.from_numpy(arrays[key])).numpy() for key in ("observations", "next_observations")}
    nets = {"policy": learner.policy.net, **({"value": learner.value} if name == "iql" else {})}
    layers = {"critic": [(w, b[:, 0]) for w, b in zip(critic.weights, critic.biases, strict=True)]}
    layers |= {key: [(layer.weight.T, layer.bias) for layer in net.layers] for key, net in nets.items()}
    for key, pairs in layers.items():
        for i, pair in enumerate(pairs):
            arrays |= {f"{key}{i}{kind}": tensor.detach().numpy() for kind, tensor in zip("wb", pair, strict=True)}
    np.savez(tmp_path / "arrays.npz", **arrays)
    command = [python, "-c", JAX, name, tmp_path / "arrays.npz"]
    done = subprocess.run(command, cwd=bench, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if name == "iql":
        ours = learner.update(table, Rng(0))
        assert found == pytest.approx([float(sum(ours.values()))], rel=1e-4)
        return
    learner.method = dataclasses.replace(learner.method, policy_noise=0.0, policy_every=1)
    learner.critic_optimiser.param_groups[0]["lr"] = 0.0
    ours = learner.update(table, Rng(0))
    assert found == pytest.approx([float(ours["critic_loss"]), float(ours["actor_loss"])], rel=1e-4)


def test_operations_of_an_update_are_those_of_its_layers():
    """IQL: six forward passes of value, policy and twin critics, four backwards ones without the inputs' gradients."""
    from flops import gflop

    def forward(inputs: int, outputs: int) -> int:
        return 2 * 256 * (inputs * 256 + 256 * 256 + 256 * outputs)

    def backward(inputs: int, outputs: int) -> int:
        return 2 * forward(inputs, outputs) - 2 * 256 * inputs * 256

    expected = 2 * forward(17, 1) + 4 * forward(23, 1) + forward(17, 6)
    expected += backward(17, 1) + 2 * backward(23, 1) + backward(17, 6)
    assert gflop(telos.IQL(), data(300)) == pytest.approx(expected / 1e9, rel=1e-6)


def test_the_chi_square_test_tells_distributions_apart():
    from sampling_checks import closed, same

    draw = Rng(0).numpy()
    one, two = draw.integers(0, 20, 3000), draw.integers(0, 20, 3000)
    other = np.where(draw.random(3000) < 0.1, 3, draw.integers(0, 20, 3000))
    assert same(one, two) > 0.01 and same(one, other) < 1e-6
    assert closed(torch.tensor([[5, 2, 7, 2], [1, 1, 1, 2]]), eos=2).tolist() == [[5, 2, -1, -1], [1, 1, 1, 2]]
