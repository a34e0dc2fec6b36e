"""Both ways to compute a layer: the numbers, the gradients, and that one stands for the other."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from telos.core.numerics import PLAIN, Numerics, using
from telos.core.rng import Rng
from telos.ops.linear import ENSEMBLE, LINEAR, TOLERANCE, WAYS, ensemble_linear, linear, measured

each_way = pytest.mark.parametrize("way", WAYS)


@each_way
def test_by_hand(way: str):
    x, weight, bias = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([[1.0, -1.0]]), torch.tensor([0.25])
    with using(Numerics(linear=way)):
        assert linear(x, weight, bias).tolist() == [[-0.75], [-1.25]]
        assert linear(-x, weight, bias, relu=True).tolist() == [[1.25], [1.75]]
        assert linear(x, weight, bias, relu=True).tolist() == [[0.0], [0.0]]
        assert linear(x[0], weight, bias).tolist() == [-0.75]
        stacked = ensemble_linear(torch.stack([x, 2 * x]), torch.stack([weight.T, weight.T]), torch.ones(2, 1, 1))
        assert stacked.flatten().tolist() == [0.0, -0.5, -1.0, -2.0]


def inputs(rows: int = 33, width: int = 40) -> list[torch.Tensor]:
    draw = Rng(1).torch()
    shapes = [(rows, width), (24, width), (24,)]
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("relu", [False, True])
def test_both_ways_agree_forwards_and_backwards(relu: bool):
    leaves = inputs()
    results = []
    for way in ("plain", "fused"):
        y = LINEAR[way](*leaves, relu)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= TOLERANCE * one.abs().max()


@pytest.mark.parametrize("relu", [False, True])
def test_both_ways_agree_for_ensembles(relu: bool):
    draw = Rng(2).torch()
    leaves = [torch.randn(s, generator=draw).requires_grad_() for s in [(3, 17, 8), (3, 8, 5), (3, 1, 5)]]
    results = []
    for way in ("plain", "fused"):
        y = ENSEMBLE[way](*leaves, relu)
        results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCE * one.abs().max()


@each_way
def test_gradients_of_gradients(way: str):
    """The norm of dy/dx for y = relu(x W^T + b) W'^T: its gradient in W, by both ways and by differences."""
    x, weight, bias = inputs(5, 6)
    head = torch.randn(1, 24, generator=Rng(3).torch())

    def norm(weight: torch.Tensor) -> torch.Tensor:
        y = LINEAR[way](LINEAR[way](x, weight, bias, True), head, torch.zeros(1), False)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return slope.square().sum()

    (gradient,) = torch.autograd.grad(norm(weight), weight)
    step = torch.zeros_like(weight)
    step[3, 2] = 1e-2
    difference = (norm(weight.detach() + step) - norm(weight.detach() - step)) / 2e-2
    assert gradient[3, 2].item() == pytest.approx(difference.item(), rel=1e-2)
    assert float(gradient.abs().max()) > 0


def test_what_one_dnn_cannot_do_goes_the_plain_way():
    x, weight, bias = (tensor.detach().double() for tensor in inputs())
    assert torch.equal(LINEAR["fused"](x, weight, bias, True), LINEAR["plain"](x, weight, bias, True))
    assert LINEAR["fused"](x[:0].float(), weight.float(), bias.float(), False).shape == (0, 24)


def test_the_path_in_force_decides(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    for way in WAYS:
        monkeypatch.setitem(LINEAR, way, lambda *_, way=way: asked.append(way) or torch.zeros(33, 24))
    x, weight, bias = (tensor.detach() for tensor in inputs())
    with using(Numerics(linear="fused")):
        linear(x, weight, bias)
        with using(PLAIN):
            linear(x, weight, bias)
        linear(x, weight, bias)
    assert asked == ["fused", "plain", "fused"]


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_the_measurement_compares_before_it_chooses(around: Any):
    with around():  # sampling asks for the path where there are no gradients
        found = measured(rows=64, width=32, rounds=3)
    assert found["chosen"] in WAYS
    assert set(found["milliseconds"]) == set(WAYS) and found["error"] < TOLERANCE


def test_a_way_that_is_wrong_is_not_chosen(monkeypatch: pytest.MonkeyPatch):
    plain = LINEAR["plain"]
    monkeypatch.setitem(LINEAR, "fused", lambda x, weight, bias, relu: plain(x, weight, bias, relu) * 1.01)
    found = measured(rows=64, width=32, rounds=3)
    assert found["error"] > TOLERANCE and found["chosen"] == "plain"


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["own inputs", "the same inputs"])
def test_several_networks_at_once_are_one_after_another(relu: bool, shared: bool):
    draw = Rng(4).torch()
    layer = [torch.randn(s, generator=draw).requires_grad_() for s in [(5, 7, 8), (5, 6, 8), (5, 6)]]
    pairs = [torch.randn(s, generator=draw).requires_grad_() for s in [(5, 2, 7, 8), (5, 2, 8, 3), (5, 2, 1, 3)]]
    for table, leaves in ((LINEAR, layer), (ENSEMBLE, pairs)):
        x = leaves[0][0] if shared else leaves[0]
        at_once = torch.vmap(
            lambda x, w, b, table=table: table["stacked"](x, w, b, relu), (None if shared else 0, 0, 0)
        )
        found = at_once(x, *leaves[1:])
        wanted = torch.stack(
            [table["plain"](x if shared else x[i], leaves[1][i], leaves[2][i], relu) for i in range(5)]
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True) for y in (found, wanted)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
