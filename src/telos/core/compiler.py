"""Compiles one function of tensors, in a process of its own: python compiler.py FOLDER. It imports nothing of telos.

FOLDER holds graph.py with the function `forward`, and about.json, which says what it is called with and, where it gives
gradients, what is trained; program.pt2 is written there, for torch's loader of compiled models.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A source's `forward(self, *tensors)`."""

    def __init__(self, code: str):
        super().__init__()
        names: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}
        exec(code, names)
        self.source: Callable[..., Any] = names["forward"]

    def forward(self, *tensors: Tensor) -> Any:
        return self.source(self, *tensors)


class Step(nn.Module):
    """Metrics of a loss, then one step of Adam on its gradients, in place.

    Args:
        code: source of `forward(self, *tensors)`: metrics, then a gradient for each trained tensor.
        trained: places of what is trained among `tensors`; groups: the group of each.
        betas, eps: of each group. norm: whether the norm of all gradients is a metric, the last one.
    """

    def __init__(
        self, code: str, trained: Sequence[int], groups: Sequence[int], betas: Sequence[tuple[float, float]],
        eps: Sequence[float], norm: bool,
    ):  # fmt: skip
        super().__init__()
        self.forward_and_backward = Function(code)
        self.trained, self.groups, self.betas, self.eps, self.norm = trained, groups, betas, eps, norm

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Called with the graph's own tensors, first and second moments of what is trained, and (groups, 2) rates.

        Rates are a step's length over the first moment's correction, and the root of the second one's.
        """
        count = len(self.trained)
        given, moments, rates = tensors[: -2 * count - 1], tensors[-2 * count - 1 : -1], tensors[-1]
        found = self.forward_and_backward(*given)
        metrics, gradients = found[: len(found) - count], found[len(found) - count :]
        squares = []
        for place, group, gradient, first, second in zip(
            self.trained, self.groups, gradients, moments[:count], moments[count:], strict=True
        ):
            (beta1, beta2), eps = self.betas[group], self.eps[group]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            given[place].sub_(first / (second.sqrt() / rates[group, 1] + eps) * rates[group, 0])
            if self.norm:
                squares.append(gradient.square().sum())
        return (*metrics, torch.stack(squares).sum().sqrt()) if self.norm else tuple(metrics)


# A product that starts from its bias has this copied first, where what follows could add it for nothing. It is taken
# off with its sign changed, which is the same: an addition would be joined to the product again.
BIASES: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.addmm.default: lambda bias, a, b: a.mm(b) - bias.neg(),
    torch.ops.aten.baddbmm.default: lambda bias, a, b: a.bmm(b) - bias.neg(),
}


def read(folder: Path) -> tuple[nn.Module, list[Tensor], Any, int]:
    """The function, tensors as it is called with, what varies of them, and the threads to compile it for."""
    about, code = json.loads((folder / "about.json").read_text()), (folder / "graph.py").read_text()
    function = Function(code) if about["step"] is None else Step(code, **about["step"])
    inputs = [torch.empty_strided(*sizes, dtype=getattr(torch, kind)).zero_() for *sizes, kind in about["inputs"]]
    sizes = {name: torch.export.Dim(name, min=2) for names in about["varying"] for name in names if name}
    varying = [{place: sizes[name] for place, name in enumerate(names) if name} for names in about["varying"]]
    return function, inputs, (tuple(varying),) if sizes else None, about["threads"]


@torch.no_grad()
def main() -> None:
    folder = Path(sys.argv[1])
    function, inputs, varying, threads = read(folder)
    torch.set_num_threads(threads)
    # Otherwise sizes that differ by name would have to be told apart by ranges.
    options: dict[str, Any] = {"dynamic_shapes": varying, "prefer_deferred_runtime_asserts_over_guards": True}
    program = torch.export.export(function, tuple(inputs), strict=False, **options)
    program = program.run_decompositions(BIASES)
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "program.pt2"))


if __name__ == "__main__":
    main()
