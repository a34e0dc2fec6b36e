from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Product
from telos.core.registry import use
from telos.core.rng import Rng
from telos.worlds.lineworld import dataset


@dataclass(frozen=True)
class Outer(Method):
    """A method that holds another."""

    inner: Method = field(default_factory=lambda: use("bc", batch_size=3))
    rates: tuple[float, ...] = (0.1, 0.2)
    name: str = "x"

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        raise NotImplementedError

    def source(self, spec: Spec) -> Source:
        raise NotImplementedError


def test_options_survive_json_with_a_method_inside():
    method = Outer(inner=use("td3", tau=0.5, hidden=(3, 4)), rates=(1.0,))
    options = json.loads(json.dumps(method.options()))
    assert options["inner"]["use"] == "td3" and options["inner"]["hidden"] == [3, 4] and options["rates"] == [1.0]
    assert Outer.from_options(options) == method
    assert Outer.from_options({}) == Outer()


def test_an_unknown_option_is_named():
    with pytest.raises(TelosError, match="no option 'betta'") as error:
        use("dpo").from_options({"betta": 1})
    assert "beta" in error.value.expected


class Things(Learner):
    """All kinds of attributes."""

    constant = ("frozen", "limit")

    def __init__(self, seed: int):
        draw = Rng(seed).torch()
        self.net = nn.Linear(2, 2)
        self.tied = nn.ModuleDict({"a": self.net, "b": self.net})
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        self.adam = torch.optim.Adam(self.net.parameters(), 0.1)
        self.sgd = torch.optim.SGD(self.net.parameters(), 0.1, momentum=0.9)
        self.average, self.count, self.temperature, self.flag = torch.zeros(2), 0, 0.5, False
        self.frozen, self.limit, self.label = torch.full((1,), float(seed)), seed, f"seed {seed}"

    def update(self, batch: Any, rng: Rng, micro: int = 1) -> Metrics:
        for optimiser in (self.adam, self.sgd):
            optimiser.zero_grad()
            self.net(batch).square().sum().backward()
            optimiser.step()
        self.average += batch.mean(0)
        self.count, self.temperature, self.flag = self.count + 1, self.temperature * 0.9, True
        return {}

    def product(self) -> Product:
        raise NotImplementedError


def test_all_that_changes_is_state_and_what_is_constant_is_not():
    batch = torch.ones(3, 2)
    first, second = Things(0), Things(1)
    for _ in range(3):
        first.update(batch, Rng(0))
    tensors, numbers = first.state()
    assert {name.split(".")[0] for name in tensors} == {"net", "tied", "adam", "sgd", "average"}
    assert {"count", "temperature", "flag"} <= set(numbers) and not {"limit", "label"} & set(numbers)
    second.load_state({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(numbers)))
    assert (second.count, second.flag, second.limit, second.label) == (3, True, 1, "seed 1")
    assert isinstance(second.flag, bool) and second.temperature == first.temperature
    first.update(batch, Rng(0))
    second.update(batch, Rng(0))
    for name, tensor in first.state()[0].items():
        assert torch.equal(tensor, second.state()[0][name]), name


def test_a_state_that_lacks_something_is_refused():
    learner = Things(0)
    learner.update(torch.ones(1, 2), Rng(0))
    tensors, numbers = learner.state()
    with pytest.raises(RuntimeError, match="weight"):
        learner.load_state({k: v for k, v in tensors.items() if k != "net.weight"}, numbers)
    with pytest.raises(KeyError):
        learner.load_state(tensors, {k: v for k, v in numbers.items() if k != "count"})


@pytest.mark.parametrize("micro", [1, 3, 7])
def test_sums_divided_once_give_the_mean_gradient(micro: int):
    data = dataset(7)
    weight = nn.Parameter(torch.tensor([2.0]))
    sums = Accumulator()
    for part in split(data, micro):
        sums.add((weight * part.observations[:, 0]).sum(), len(part))
    loss = sums.divide([weight, nn.Parameter(torch.zeros(1))])
    assert weight.grad is not None and len(split(data, micro)) == micro
    assert torch.allclose(weight.grad, data.observations.mean().view(1), atol=1e-6)
    assert torch.allclose(torch.as_tensor(loss), 2 * data.observations.mean(), atol=1e-5)


def test_what_is_missing_is_named_with_its_use():
    spec = Spec(None, {"env": None}, 1, torch.device("cpu"), Rng(0))
    with pytest.raises(TelosError, match="'env' is missing") as error:
        spec.need("env", "an environment to act in")
    assert error.value.expected == "an environment to act in" and "--env" in error.value.fix
