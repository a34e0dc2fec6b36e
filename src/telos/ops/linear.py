"""Layers of small networks: x W^T + b, with or without ReLU, alone and for an ensemble.

Two ways, chosen by `telos.core.numerics`: torch's own (MKL on x86), and oneDNN's product with bias and ReLU fused,
which is twice as fast where MKL takes its slow path, as on AMD's processors. They agree within rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from telos.core.numerics import current

if TYPE_CHECKING:
    from jaxtyping import Float


def linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"],
    relu: bool = False,
) -> Float[Tensor, "*batch outputs"]:
    """x W^T + b, then max(0, .) with `relu`."""
    return LINEAR[current().linear](x, weight, bias, relu)


def ensemble_linear(
    x: Float[Tensor, "members batch inputs"],
    weight: Float[Tensor, "members inputs outputs"],
    bias: Float[Tensor, "members 1 outputs"],
    relu: bool = False,
) -> Float[Tensor, "members batch outputs"]:
    """x_i W_i + b_i for each member, then max(0, .) with `relu`."""
    return ENSEMBLE[current().linear](x, weight, bias, relu)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """By torch."""
    y = F.linear(x, weight, bias)
    return torch.relu_(y) if relu else y


def plain_ensemble(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """By torch, in one batched product."""
    y = torch.baddbmm(bias, x, weight)
    return torch.relu_(y) if relu else y


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x W^T + b by oneDNN, without gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")


class FusedLinear(torch.autograd.Function):
    """`linear` for (B, I) inputs by oneDNN, both ways; where gradients of gradients are asked for, it goes torch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        y = product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y)
        ctx.relu = relu
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, y = ctx.saved_tensors
        if ctx.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        times = torch.mm if torch.is_grad_enabled() else lambda a, b: product(a.contiguous(), b.t().contiguous())
        return (
            times(gradient, weight) if ctx.needs_input_grad[0] else None,
            times(gradient.t(), x) if ctx.needs_input_grad[1] else None,
            gradient.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )


def fused_linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """By oneDNN where it can: float32 on a CPU."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
        return plain_linear(x, weight, bias, relu)
    y: Any = FusedLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, relu)
    return y.view(*x.shape[:-1], len(weight))


def fused_ensemble(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Member by member: oneDNN's batched product fuses nothing."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return plain_ensemble(x, weight, bias, relu)
    members = zip(x.unbind(), weight.unbind(), bias.unbind(), strict=True)
    return torch.stack([fused_linear(inputs, w.t(), b[0], relu) for inputs, w, b in members])


class Stacked(torch.autograd.Function):
    """Layers under `vmap` over networks: one batched product with the bias in it, which `vmap` by itself adds apart.

    For x (S, ..., B, I), weight (S, ..., I, O) and bias (S, ..., 1, O), all of them with the same leading dimensions.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        raise RuntimeError("stacked layers are computed under vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        raise RuntimeError("stacked layers are computed under vmap only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        *tensors, relu = args
        size = info.batch_size
        x, weight, bias = (
            tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims, strict=False)
        )
        flat = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (x, weight, bias)]
        y = plain_ensemble(flat[0], flat[1], flat[2], relu)
        return y.view(*x.shape[:-1], y.shape[-1]), 0


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Under `vmap` over weights."""
    y: Any = Stacked.apply(x.reshape(-1, x.shape[-1]), weight.mT, bias[None], relu)
    return y.view(*x.shape[:-1], len(weight))


def stacked_ensemble(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Under `vmap` over weights."""
    y: Any = Stacked.apply(x, weight, bias, relu)
    return y


Kernel = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
WAYS = ("plain", "fused")
"""Which may be chosen; "stacked" is for several networks at once, see telos.core.together."""
LINEAR: dict[str, Kernel] = {"plain": plain_linear, "fused": fused_linear, "stacked": stacked_linear}
ENSEMBLE: dict[str, Kernel] = {"plain": plain_ensemble, "fused": fused_ensemble, "stacked": stacked_ensemble}
TOLERANCE = 1e-4
"""Largest difference between the two ways that is rounding, relative to the largest value."""


@torch.inference_mode(False)
@torch.enable_grad()
def measured(rows: int = 256, width: int = 256, rounds: int = 30) -> dict[str, Any]:
    """Milliseconds of two layers, alone and as a pair, forwards and backwards, by each way, and the one to take.

    The ways alternate and the medians count; "fused" must agree with "plain" and be a tenth faster.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # torch was built without oneDNN
        return {"chosen": "plain"}
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=draw)
    weight = torch.randn(width, width, generator=draw).mul_(width**-0.5).requires_grad_()
    bias = torch.randn(width, generator=draw).requires_grad_()
    weights, biases = (torch.stack([w, w]).detach().requires_grad_() for w in (weight, bias[None]))

    def layers(way: str) -> list[Tensor]:
        y = LINEAR[way](LINEAR[way](x, weight, bias, True), weight, bias, False)
        z = ENSEMBLE[way](x.expand(2, rows, width), weights, biases, True)
        z = ENSEMBLE[way](z, weights, biases, False)
        trained = [weight, bias, weights, biases]
        return [y, z, *torch.autograd.grad(y.square().mean() + z.square().mean(), trained)]

    def seconds(way: str) -> float:
        start = time.perf_counter()
        layers(way)
        return time.perf_counter() - start

    plain, fused = layers("plain"), layers("fused")
    error = max(float(((a - b).abs().max() / a.abs().max()).detach()) for a, b in zip(plain, fused, strict=True))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, taken in times.items():
            taken.append(seconds(way))
    medians = {way: 1e3 * sorted(values)[rounds // 2] for way, values in times.items()}
    faster = error < TOLERANCE and medians["fused"] < 0.9 * medians["plain"]
    return {"chosen": "fused" if faster else "plain", "milliseconds": medians, "error": error}
