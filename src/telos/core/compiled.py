"""Gradient steps as compiled programs: loss, gradients and Adam in one call, without torch's dispatch between them.

A step is traced once (the loss of a `Learner.descend` is pure) and becomes one of `telos.core.programs`. The first step
is made both ways; where they differ, where something cannot be traced or nothing compiles, the step is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from telos.core.programs import Uncompiled, program
from telos.core.together import Descent, with_tensors

TOLERANCE = 1e-5
"""Largest difference from torch's step that is rounding."""
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trace:
    """What a step computes.

    Args:
        code: source of the graph. held: the learner's tensors that it reads, live. names: of the metrics.
        trained: what it gives gradients for, all among `held`; groups: the optimiser's group of each.
    """

    code: str
    held: list[Tensor]
    names: list[str]
    trained: list[Tensor]
    groups: list[int]


_steps: WeakKeyDictionary[Any, dict[int, tuple[Any, CompiledStep | None]]] = WeakKeyDictionary()
"""For each optimiser of a learner what its first step was, and its program; None where that is torch's."""


def step_of(request: Descent) -> CompiledStep | None:
    """The compiled step for a request, made at its optimiser's first; None where the step has to be torch's."""
    if len(request.parts) != 1 or type(request.optimiser) not in (torch.optim.Adam, torch.optim.AdamW):
        return None
    known, kind = _steps.setdefault(request.learner, {}), kind_of(request)
    if id(request.optimiser) not in known:
        try:
            step = CompiledStep(request)
            known[id(request.optimiser)] = (kind, step if step.agrees(request) else None)
        except Uncompiled:
            known[id(request.optimiser)] = (kind, None)
    first, step = known[id(request.optimiser)]
    return step if kind == first else None


def kind_of(request: Descent) -> tuple[Any, ...]:
    """What a program is compiled for: a loss, and shapes, strides and kinds of numbers."""
    tensors = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in request.values]
    return request.loss.__qualname__, *tensors


def traced(request: Descent) -> Trace:
    """
    Raises:
        Uncompiled: it is not on a CPU, reads tensors that are not the learner's, or looks into them.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    values, names = request.values, list[str]()
    groups = [(p, i) for i, group in enumerate(request.optimiser.param_groups) for p in group["params"]]
    wanted = None if request.trained is None else {id(parameter) for parameter in request.trained}
    trained = [(p, i) for p, i in groups if p.requires_grad and (wanted is None or id(p) in wanted)]
    own = {id(tensor): tensor for tensor in owned(request.learner)}
    if any(tensor.device.type != "cpu" for tensor in [*values, *own.values()]):
        raise Uncompiled("compiled steps are for CPUs")

    def run(*tensors: Tensor) -> tuple[Tensor | None, ...]:
        total, sums = request.loss(*with_tensors(request.parts[0], iter(tensors)))
        names.extend(sums)
        gradients = torch.autograd.grad(total / request.rows, [p for p, _ in trained], allow_unused=True)
        return (*(torch.as_tensor(value).detach() / request.rows for value in sums.values()), *gradients)

    try:
        with torch.enable_grad():
            module = make_fx(run)(*values)
    except Exception as error:  # whatever a loss does that cannot be traced
        raise Uncompiled(str(error)) from error
    return _lifted(module, own, names, trained)


def _lifted(module: Any, own: dict[int, Tensor], names: list[str], trained: list[tuple[Tensor, int]]) -> Trace:
    """The graph with the learner's tensors as inputs, before those that differ from step to step."""
    graph, inputs = module.graph, dict[int, Any]()
    graph.eliminate_dead_code()
    first = next(iter(graph.nodes))
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if id(tensor) not in own:
            raise Uncompiled(f"a tensor of shape {tuple(tensor.shape)} is not the learner's")
        if id(tensor) not in inputs:
            with graph.inserting_before(first):
                inputs[id(tensor)] = graph.placeholder(f"held_{len(inputs)}")
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    (output,) = (node for node in graph.nodes if node.op == "output")
    found = output.args[0]
    gradients = found[len(names) :]
    output.args = ((*found[: len(names)], *(gradient for gradient in gradients if gradient is not None)),)
    trained = [pair for pair, gradient in zip(trained, gradients, strict=True) if gradient is not None]
    if not trained:
        raise Uncompiled("nothing is trained")
    module.recompile()
    parameters, groups = zip(*trained)
    return Trace(module.code, [own[key] for key in inputs], names, list(parameters), list(groups))


def owned(learner: Any) -> list[Tensor]:
    """The tensors of a learner: of its modules, and its own."""
    found = list[Tensor]()
    for value in vars(learner).values():
        if isinstance(value, nn.Module):
            found += [*value.parameters(), *value.buffers()]
        elif isinstance(value, Tensor):
            found.append(value)
    return found


class CompiledStep:
    """A program and what it is called with.

    Raises:
        Uncompiled: see `traced` and `program`.
    """

    def __init__(self, request: Descent):
        self.trace, groups = traced(request), request.optimiser.param_groups
        if any(group["weight_decay"] or group["amsgrad"] or group["maximize"] for group in groups):
            raise Uncompiled("an option of the optimiser")
        self.names = [*self.trace.names, *(["grad_norm"] if request.grad_norm else [])]
        self.rates = torch.empty(len(groups), 2)
        self.state = request.optimiser.state
        for parameter in self.trace.trained:
            if not self.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
                self.state[parameter].update(step=torch.zeros(()), **moments)
        # One tensor with all of their counts is advanced at once.
        taken = torch.stack([self.state[parameter]["step"] for parameter in self.trace.trained])
        for parameter, count in zip(self.trace.trained, taken.unbind(), strict=True):
            self.state[parameter]["step"] = count
        # Few numbers are changed sooner by numpy.
        self.counts, self.written = taken.numpy(), self.rates.numpy()
        self.moments = [self.state[parameter][name] for name in MOMENTS for parameter in self.trace.trained]
        places = {id(tensor): place for place, tensor in enumerate(self.trace.held)}
        options = {
            "trained": [places[id(parameter)] for parameter in self.trace.trained],
            "groups": self.trace.groups,
            "betas": [group["betas"] for group in groups],
            "eps": [group["eps"] for group in groups],
            "norm": request.grad_norm,
        }
        self.program = program(self.trace.code, self.tensors(request), step=options)

    def tensors(self, request: Descent) -> list[Tensor]:
        return [*self.trace.held, *request.values, *self.moments, self.rates]

    @torch.no_grad()
    def __call__(self, request: Descent) -> dict[str, Tensor | float]:
        """Makes the step: the metrics."""
        self.counts += 1
        taken = float(self.counts[0])
        for row, group in enumerate(request.optimiser.param_groups):
            beta1, beta2 = group["betas"]
            self.written[row] = group["lr"] / (1 - beta1**taken), (1 - beta2**taken) ** 0.5
        found = self.program(self.tensors(request))
        return dict(zip(self.names, found, strict=True))

    def agrees(self, request: Descent) -> bool:
        """Whether torch's step has the same metrics and moments; afterwards nothing has changed."""
        own = [self.state[parameter] for parameter in self.trace.trained]
        changing = [*self.trace.trained, *(tensor for state in own for tensor in state.values())]
        before = [tensor.detach().clone() for tensor in changing]
        results = []
        for way in (self, type(request).by_torch):
            metrics = [torch.as_tensor(value) for value in way(request).values()]
            results.append([metrics, *([state[name].clone() for state in own] for name in MOMENTS)])
            with torch.no_grad():
                torch._foreach_copy_(changing, before)
        request.optimiser.zero_grad()
        return all(map(close, *results))


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether tensors differ by rounding, relative to the largest value in any of them."""
    largest = max(float(tensor.detach().abs().max()) for tensor in expected)
    errors = [float((a - b).detach().abs().max()) for a, b in zip(found, expected, strict=True)]
    return all(error <= TOLERANCE * largest for error in errors)
