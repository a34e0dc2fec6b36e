"""Worker: IQL and TD3+BC in JAX, our own code from the equations: a jitted scan of updates, data on the device.

The losses, hyper-parameters and precision are telos's: float32, matrix products at the highest precision.
"""

from __future__ import annotations

import functools
import os
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp

from offline_data import ACTIONS, BATCH, HIDDEN, OBSERVATIONS, UPDATES, columns
from serve import Gate, serve

DISCOUNT, TAU, LEARNING_RATE, STEPS = 0.99, 0.005, 3e-4, 1_000_000
EXPECTILE, BETA, CLIP = 0.7, 3.0, 100.0
ALPHA, NOISE, NOISE_CLIP, POLICY_EVERY = 2.5, 0.2, 0.5, 2


def mlp(key, inputs, outputs):
    """Weights and biases of two hidden layers, U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    sizes = [inputs, HIDDEN, HIDDEN, outputs]
    layers = []
    for i, o in pairwise(sizes):
        key, weight, bias = jax.random.split(key, 3)
        bound = i**-0.5
        layers.append((jax.random.uniform(weight, (i, o), minval=-bound, maxval=bound),
                       jax.random.uniform(bias, (o,), minval=-bound, maxval=bound)))  # fmt: skip
    return layers


def forward(layers, x):
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def twin(critics, states, actions):
    """(2, B) values of both critics."""
    return jax.vmap(lambda layers: forward(layers, jnp.concatenate([states, actions], -1))[:, 0])(critics)


def adam(parameters, gradients, state, rate):
    """One step; the new parameters and moments."""
    first, second, count = state
    count = count + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
    one, two = 1 - 0.9**count, 1 - 0.999**count
    new = jax.tree.map(lambda p, m, v: p - rate * (m / one) / (jnp.sqrt(v / two) + 1e-8), parameters, first, second)
    return new, (first, second, count)


def moments(parameters):
    return jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters), jnp.zeros(())


def copied(parameters):
    return jax.tree.map(jnp.copy, parameters)


def follow(target, source):
    return jax.tree.map(lambda slow, fast: (1 - TAU) * slow + TAU * fast, target, source)


def target(rewards, terminated, values):
    return rewards + DISCOUNT * jnp.where(terminated, 0.0, values)


class IQL:
    normalise = False

    def start(self, key):
        keys = jax.random.split(key, 4)
        critics = jax.vmap(lambda k: mlp(k, OBSERVATIONS + ACTIONS, 1))(keys[:2])
        values = {"critics": critics, "value": mlp(keys[2], OBSERVATIONS, 1)}
        policy = {"net": mlp(keys[3], OBSERVATIONS, ACTIONS), "log_std": jnp.zeros(ACTIONS)}
        return {"values": values, "policy": policy, "targets": copied(critics),
                "moments": (moments(values), moments(policy)), "updates": jnp.zeros(())}  # fmt: skip

    def loss(self, parameters, targets, batch):
        values, policy = parameters
        states, actions, rewards, next_states, terminated = batch
        next_values = jax.lax.stop_gradient(forward(values["value"], next_states)[:, 0])
        recorded = twin(targets, states, actions).min(0)
        advantages = recorded - forward(values["value"], states)[:, 0]
        value_loss = (jnp.where(advantages < 0, 1 - EXPECTILE, EXPECTILE) * advantages**2).mean()
        errors = twin(values["critics"], states, actions) - target(rewards, terminated, next_values)
        weights = jnp.minimum(jnp.exp(BETA * jax.lax.stop_gradient(advantages)), CLIP)
        log_std = policy["log_std"].clip(-5.0, 2.0)
        z = (actions - jnp.tanh(forward(policy["net"], states))) * jnp.exp(-log_std)
        log_probs = (-0.5 * z**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)
        return value_loss + (errors**2).mean(-1).sum() - (weights * log_probs).mean()

    def update(self, state, batch, key):
        gradients = jax.grad(self.loss)((state["values"], state["policy"]), state["targets"], batch)
        rate = 0.5 * LEARNING_RATE * (1 + jnp.cos(jnp.pi * state["updates"] / STEPS))
        values, first = adam(state["values"], gradients[0], state["moments"][0], LEARNING_RATE)
        policy, second = adam(state["policy"], gradients[1], state["moments"][1], rate)
        return {"values": values, "policy": policy, "targets": follow(state["targets"], values["critics"]),
                "moments": (first, second), "updates": state["updates"] + 1}  # fmt: skip


class TD3BC:
    normalise = True

    def start(self, key):
        keys = jax.random.split(key, 3)
        critics = jax.vmap(lambda k: mlp(k, OBSERVATIONS + ACTIONS, 1))(keys[:2])
        policy = mlp(keys[2], OBSERVATIONS, ACTIONS)
        return {"critics": critics, "policy": policy, "targets": copied(critics), "slow": copied(policy),
                "moments": (moments(critics), moments(policy)), "updates": jnp.zeros((), int)}  # fmt: skip

    def critic_loss(self, critics, state, batch, key):
        states, actions, rewards, next_states, terminated = batch
        noise = (NOISE * jax.random.normal(key, actions.shape)).clip(-NOISE_CLIP, NOISE_CLIP)
        next_actions = (jnp.tanh(forward(state["slow"], next_states)) + noise).clip(-1, 1)
        y = target(rewards, terminated, twin(state["targets"], next_states, next_actions).min(0))
        return ((twin(critics, states, actions) - y) ** 2).mean(-1).sum()

    def policy_loss(self, policy, critics, batch):
        states, actions = batch[:2]
        own = jnp.tanh(forward(policy, states))
        q = forward(jax.tree.map(lambda x: x[0], critics), jnp.concatenate([states, own], -1))[:, 0]
        return -ALPHA / jax.lax.stop_gradient(jnp.abs(q).mean()) * q.mean() + ((own - actions) ** 2).mean()

    def update(self, state, batch, key):
        gradients = jax.grad(self.critic_loss)(state["critics"], state, batch, key)
        critics, first = adam(state["critics"], gradients, state["moments"][0], LEARNING_RATE)
        state = state | {"critics": critics, "moments": (first, state["moments"][1]), "updates": state["updates"] + 1}

        def improved(state):
            gradients = jax.grad(self.policy_loss)(state["policy"], state["critics"], batch)
            policy, second = adam(state["policy"], gradients, state["moments"][1], LEARNING_RATE)
            return state | {"policy": policy, "slow": follow(state["slow"], policy), "moments": (first, second),
                            "targets": follow(state["targets"], state["critics"])}  # fmt: skip

        return jax.lax.cond(state["updates"] % POLICY_EVERY == 0, improved, lambda state: state, state)


def batches(table, normalise):
    """The data on the device, and a function that draws a batch."""
    if normalise:
        mean, std = table["observations"].mean(0), table["observations"].std(0) + 1e-3
        table = {**table, **{n: (table[n] - mean) / std for n in ("observations", "next_observations")}}
    names = ("observations", "actions", "rewards", "next_observations", "terminated")
    data = [jnp.asarray(table[name]) for name in names]

    def draw(data, key):
        index = jax.random.randint(key, (BATCH,), 0, len(data[0]))
        return [column[index] for column in data]

    return data, draw


def main() -> None:
    # XLA makes a thread for each processor that it may use, whatever OMP_NUM_THREADS says.
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[: int(os.environ.get("OMP_NUM_THREADS", len(allowed)))])
    method = {"iql": IQL, "td3_bc": TD3BC}[sys.argv[1]]()
    data, draw = batches(columns(), method.normalise)
    carried = [method.start(jax.random.key(0)), jax.random.key(1)]

    @functools.partial(jax.jit, donate_argnums=0)
    def updates(state, key, data):
        def one(state, key):
            first, second = jax.random.split(key)
            return method.update(state, draw(data, first), second), None

        return jax.lax.scan(one, state, jax.random.split(key, UPDATES))[0]

    def work() -> None:
        carried[1], key = jax.random.split(carried[1])
        carried[0] = jax.block_until_ready(updates(carried[0], key, data))

    with jax.default_matmul_precision("highest"):
        serve(work, Gate("jax", "jaxlib", updates=UPDATES))


if __name__ == "__main__":
    main()
