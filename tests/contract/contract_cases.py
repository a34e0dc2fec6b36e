"""Every method of the package on a tiny world, found through the registry.

A method is covered once its file is there. What it learns from decides its world: `WORLDS` has one or more for each
record type. A method with a new record type needs an entry there, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv

from telos.core.errors import TelosError
from telos.core.fit import named
from telos.core.method import Learner, Method, Source, Spec
from telos.core.products import Product
from telos.core.registry import class_slug, entries
from telos.core.rng import Rng
from telos.data.records import Box, Demonstrations, Discrete, LoggedBandit, Preferences, Prompts, Rankings, Transitions
from telos.data.scored import ScoredTexts
from telos.lm.rounds import Collector

STEPS = 8
COUNT = 21
"""Texts in a world: an epoch of batches of 10 ends with a batch of one."""

SMALL: dict[str, Any] = {
    "batch_size": 10,
    "candidates": 12,
    "chain": 5,
    "critic_hidden": (16, 16),
    "environments": 2,
    "heads": 2,
    "hidden": (16, 16),
    "layers": 2,
    "learning_rate": 1e-3,
    "least_score": -9.0,
    "max_new_tokens": 4,
    "members": 2,
    "n": 3,
    "num_samples": 4,
    "phi_hidden": (16,),
    "prompts_per_batch": 5,
    "rounds": 2,
    "samples_per_prompt": 2,
    "steps_per_update": 5,
    "template": "<spare{score}> {prompt}",
    "vae_hidden": (16, 16),
    "warmup": 12,
    "warmup_steps": 0,
    "width": 12,
}
"""Options that are made small, or fit the bundled model's few words, where a method has them."""


@dataclass(frozen=True, eq=False)
class World:
    """Data to learn from and what else `fit` is given.

    Args:
        optional: a method may refuse this world with a TelosError instead of learning from it.
    """

    name: str
    data: Callable[[], Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False


def count_good(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A purpose: good words minus bad words."""
    return [float(text.count("good") - text.count("bad")) for text in completions]


def transitions(discrete: bool = False) -> Transitions:
    """300 steps of a point that is pushed about, in episodes of 10, some of which end by themselves."""
    rng = Rng(7).at("world").numpy()
    position = rng.uniform(-1, 1, (300, 3)).astype("float32")
    push = rng.integers(3, size=300) if discrete else rng.uniform(-2, 0.5, (300, 2)).astype("float32")
    step = 0.1 * (push[:, None] - 1.0 if discrete else push[:, :1])
    last = (torch.arange(300) % 10 == 9).numpy()
    ended = last & (rng.random(300) < 0.5)
    return Transitions.validated(
        observations=position,
        actions=push,
        rewards=-(position**2).sum(-1),
        auxiliary=position[:, :2] > 0.5,
        next_observations=position + step,
        terminated=ended,
        truncated=last & ~ended,
        action_space=Discrete(3) if discrete else Box((-2.0, -2.0), (0.5, 0.5)),
    )


def decisions() -> LoggedBandit:
    """300 decisions between 4 actions, of which some are not allowed, with rewards of 0 and 1."""
    rng = Rng(11).at("world").numpy()
    contexts = rng.normal(size=(300, 3))
    allowed = rng.random((300, 4)) < 0.7
    actions = rng.integers(4, size=300)
    allowed[range(300), actions] = True
    return LoggedBandit.validated(
        contexts=contexts,
        actions=actions,
        rewards=rng.random(300) < 1 / (1 + np.exp(-contexts[:, 0] - actions + 1.5)),
        allowed=allowed,
        propensities=1 / allowed.sum(-1),
    )


def prompts() -> list[str]:
    """Topics of the bundled model's world, some with one or two words more."""
    return [f"topic{i % 8}" + " word2" * (i % 3) for i in range(COUNT)]


def texts(good: int, first: str = "word3") -> list[str]:
    """Completions of 4 to 11 words; `good` of 2 words are good, the others bad."""
    ends = [" word1" * ((good + 2) * i % 8) for i in range(COUNT)]
    return [f" {first}" + f" good{i % 8}" * good + f" bad{i % 5}" * (2 - good) + end for i, end in enumerate(ends)]


def pairs_of_texts() -> list[tuple[str, str]]:
    """Good texts with bad ones."""
    return list(zip(texts(2), texts(0), strict=True))


MODEL = {"model": "telos:tiny"}
WORLDS: dict[type | None, list[World]] = {
    Transitions: [
        World("continuous", transitions, {}, True),
        World("discrete", lambda: transitions(discrete=True), {}, True),
    ],
    LoggedBandit: [World("decisions", decisions)],
    Preferences: [World("pairs", lambda: Preferences(prompts(), texts(2), texts(0)), MODEL)],
    Rankings: [World("rankings", lambda: Rankings(prompts(), list(zip(texts(2), texts(1), texts(0)))), MODEL)],
    ScoredTexts: [World("scored", lambda: ScoredTexts(prompts(), pairs_of_texts(), [(2.0, 1.0)] * COUNT), MODEL)],
    Demonstrations: [World("texts", lambda: Demonstrations(prompts(), texts(1)), MODEL)],
    Prompts: [World("prompts", lambda: Prompts(prompts()), {**MODEL, "purpose": count_good})],
    None: [
        World("given", lambda: None, {**MODEL, "purpose": count_good}),
        World("environment", lambda: None, {"env": "TelosContract/Pendulum-v0"}, True),
        World("moves", lambda: None, {"env": "TelosContract/CartPole-v0"}, True),
    ],
}


class Responding(gymnasium.Wrapper):
    """Tells two further responses to each step."""

    def step(self, action):
        *made, info = self.env.step(action)
        return *made, {**info, "like": float(made[0][0]), "share": 0.5}


# Episodes of two steps, so that copies wait for each other before a checkpoint.
for name, world in (("Pendulum", PendulumEnv), ("CartPole", CartPoleEnv)):
    gymnasium.register(
        f"TelosContract/{name}-v0", lambda world=world, **options: Responding(world(**options)), max_episode_steps=2
    )

GIVEN: dict[str, Mapping[str, Any]] = {"salsa": {"reference": "telos:tiny"}}
"""What single methods need besides their world's."""


@dataclass(frozen=True)
class Case:
    """One method on one world."""

    cls: type[Method]
    world: World

    def __str__(self) -> str:
        return f"{class_slug(self.cls)}-{self.world.name}"

    def method(self, **options: Any) -> Method:
        """The method with small options."""
        return small(self.cls(**options))

    def given(self, **changes: Any) -> dict[str, Any]:
        expert = {"expert": self.world.data()[:60]} if "expert" in self.cls.takes else {}
        return {**self.world.given, **expert, **GIVEN.get(class_slug(self.cls), {}), **changes}

    def fit(self, *, options: Mapping[str, Any] | None = None, data: Any = None, **arguments: Any) -> Product:
        """Trains for `STEPS` steps on the CPU with seed 0, unless `arguments` say otherwise."""
        defaults = {"steps": STEPS, "device": "cpu", **self.given()}
        data = self.world.data() if data is None else data
        return self.method(**(options or {})).fit(data, **{**defaults, **arguments})

    def prepared(self, seed: int = 0) -> tuple[Spec, Learner, Source]:
        """A learner of one stage and its source, as `fit` makes them, without the loop."""
        method, rng = self.method(), Rng(seed).at(class_slug(self.cls))
        spec = method.prepare(Spec(self.world.data(), named(self.given()), STEPS, torch.device("cpu"), rng))
        stages = method.stages(spec, rng)
        stage = next(stages)
        while isinstance(stage.learner, Collector):  # judging before the first update: run it
            for step in range(stage.steps):
                stage.learner.update(stage.source.next(stage.learner.behaviour, rng.at("source", step)), rng)
            stage = stages.send(stage.learner.product())
        return spec, stage.learner, stage.source


def small(method: Method) -> Method:
    """The method with the options in SMALL; methods that it holds too. A batch is never made larger."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(method):
        value = getattr(method, f.name)
        if isinstance(value, Method):
            changes[f.name] = small(value)
        elif f.name in SMALL and value is not None:
            changes[f.name] = min(value, SMALL[f.name]) if isinstance(value, int) else SMALL[f.name]
    return dataclasses.replace(method, **changes)


@functools.cache
def classes() -> list[type[Method]]:
    """Every Method class of every method file, headline and variants."""
    return [getattr(importlib.import_module(e.module), name) for e in entries().values() for name in e.classes]


@functools.cache
def cases() -> list[Case]:
    """Every method on every world for its record type; optional worlds only where it learns from them."""
    found = [Case(cls, world) for cls in classes() for world in WORLDS.get(cls.data, []) if fits(cls, world)]
    return [case for case in found if not case.world.optional or not refuses(case)]


def fits(cls: type[Method], world: World) -> bool:
    """Whether a method that learns from no data takes what the world gives."""
    return cls.data is not None or set(world.given) <= set(cls.takes)


def refuses(case: Case) -> bool:
    """Says by a TelosError that it does not learn from this world."""
    try:
        case.fit(steps=1)
    except TelosError:
        return True
    return False


def warmed(case: Case, updates: int = 2) -> tuple[Learner, Source]:
    """A learner after some updates, the same at each call, and its source."""
    _, learner, source = case.prepared()
    for step in range(updates):
        learner.update(source.next(learner.behaviour, Rng(8).at(step)), Rng(9).at(step))
    return learner, source


def state(product: Product) -> dict[str, torch.Tensor]:
    """A copy of all that a product has learnt."""
    return {name: tensor.detach().clone() for name, tensor in product.state_dict().items()}


@functools.cache
def fitted(case: Case) -> Product:
    """The product of an uninterrupted run with seed 0; do not change it."""
    return case.fit()


def differing(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> list[str]:
    """Names whose tensors differ in any bit."""
    assert set(a) == set(b)
    return [name for name in a if not torch.equal(a[name], b[name])]
