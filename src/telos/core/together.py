"""Several seeds in one process: their runs take turns, and gradient steps that they share are made as one.

Each run goes on in a thread of its own, one at a time, with its own streams, metrics and checkpoints, as if it were
alone. Where all of them come to the same `Learner.descend`, their parameters (which from then on are slices of stacked
tensors) are trained in one batched step: `vmap` over the loss, one optimiser. What cannot be computed so is computed by
each run for itself; the result is the same within rounding.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from telos.core.numerics import current, using
from telos.data.records import Record

T = TypeVar("T")
ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW)
"""Optimisers that treat every element alike, so that stacked parameters are trained as single ones."""
SMALL_PRODUCTS = 2e6
"""On a CPU: most rows times weights between hidden layers for which several seeds take turns."""
MOST_PRODUCTS = 8e6
"""On a CPU: most rows times parameters of a step that is made for all at once; from about there it is not quicker."""


@dataclass
class Descent:
    """What `Learner.descend` was asked for."""

    learner: Any
    optimiser: torch.optim.Optimizer
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    parts: Sequence[tuple[Any, ...]]
    rows: int
    trained: Sequence[Tensor] | None
    grad_norm: bool

    @cached_property
    def values(self) -> list[Tensor]:
        """What differs from step to step, in the first part."""
        return list(tensors_of(self.parts[0]))

    def key(self) -> tuple[Any, ...]:
        """Equal for descents that may be made as one."""
        own = next((name for name, value in vars(self.learner).items() if value is self.optimiser), None)
        place = getattr(self.loss, "__qualname__", None)
        shapes = [[tensor.shape for tensor in tensors_of(part)] for part in self.parts]
        step = next((float(state["step"]) for state in self.optimiser.state.values()), 0.0)
        return type(self.learner), own, place, str(shapes), self.rows, step

    def pays(self) -> bool:
        """Whether stacking is quicker than one after another: always on a GPU; on a CPU large products of one fill it,
        and stacked they leave its cache."""
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
        return not on_cpu or self.rows * sum(parameter.numel() for parameter in parameters) <= MOST_PRODUCTS

    def alone(self) -> dict[str, Tensor | float]:
        """The step for this learner: the metrics."""
        if current().update == "compiled":
            from telos.core.compiled import step_of

            if (step := step_of(self)) is not None:
                return step(self)
        return self.by_torch()

    def by_torch(self) -> dict[str, Tensor | float]:
        """The step, operator by operator."""
        metrics: dict[str, Tensor | float] = {}
        self.optimiser.zero_grad()
        for part in self.parts:
            total, sums = self.loss(*part)
            (total / self.rows).backward(inputs=self.trained)
            for name, value in sums.items():
                metrics[name] = value.detach() / self.rows + metrics.get(name, 0.0)
        if self.grad_norm:
            gradients = [p.grad for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
            metrics["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
        self.optimiser.step()
        return metrics


class Cancelled(BaseException):
    """Ends a run whose neighbour failed."""


@dataclass(eq=False)
class Member:
    """One of the runs. `request` is what it waits for."""

    work: Callable[[], Any]
    leads: bool = False
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    request: Descent | None = None
    answer: dict[str, Tensor | float] = field(default_factory=dict)
    result: Any = None
    error: BaseException | None = None
    ended: bool = False
    cancelled: bool = False

    def start(self, context: contextvars.Context) -> None:
        threading.Thread(target=context.run, args=(self._run,), daemon=True).start()

    def _run(self) -> None:
        self._wait()
        _member.set(self)
        try:
            if not self.cancelled:
                self.result = self.work()
        except BaseException as error:
            self.error = error
        self.ended = True
        self.back.release()

    def _wait(self) -> None:
        self.go.acquire()

    def turn(self) -> None:
        """Lets the run go on until it asks for something, or ends."""
        self.go.release()
        self.back.acquire()

    def ask(self, request: Descent) -> dict[str, Tensor | float]:
        """In the run: waits for the step to be made; its metrics."""
        # What is large is computed by the thread that leads all runs: the idle helpers of others would be in its way.
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        self.request = request
        self.back.release()
        self._wait()
        if self.cancelled:
            raise Cancelled
        self.request = None
        return self.answer


_member: ContextVar[Member | None] = ContextVar("member", default=None)
_seeds: ContextVar[int] = ContextVar("seeds", default=1)


def member() -> Member | None:
    """The run that this is, where several go on together."""
    return _member.get()


@contextlib.contextmanager
def seeds(count: int) -> Iterator[None]:
    """Runs of so many seeds go on inside the block, in turns or one after another."""
    token = _seeds.set(count)
    try:
        yield
    finally:
        _seeds.reset(token)


def several() -> bool:
    """Whether this is one of the runs of several seeds."""
    return _seeds.get() > 1


def pays(method: Any, device: torch.device) -> bool:
    """Whether seeds of a method should take turns, so that steps are made for all; else one after another is as quick.

    On a GPU always. On a CPU for small networks and with one thread only: large ones leave its cache, and torch's
    helpers, which wait for work on the other cores, are in the way of turns.
    """
    if device.type != "cpu":
        return True
    widths, rows = getattr(method, "hidden", None), getattr(method, "batch_size", None)
    if torch.get_num_threads() > 1 or not widths or rows is None:
        return False
    return rows * sum(a * b for a, b in pairwise(widths)) <= SMALL_PRODUCTS


def first() -> bool:
    """Whether this run speaks to the user: the only one, or the first."""
    return (run := _member.get()) is None or run.leads


def run_together(works: Sequence[Callable[[], T]]) -> list[T]:
    """The results of all works, which take turns; the first error ends them all.

    The works are runs of one method with the same options: only seeds differ.
    """
    members, groups = [Member(work, leads=work is works[0]) for work in works], dict[Any, Stacked]()
    for one in members:
        one.start(contextvars.copy_context())
    try:
        while live := [one for one in members if not one.ended]:
            for one in live:
                one.turn()
                # Where stacking does not pay, a run goes on alone for as long as it can.
                while one.request is not None and not one.request.pays():
                    one.answer = one.request.alone()
                    one.turn()
                if one.error is not None:
                    raise one.error
            asking = [one for one in live if one.request is not None]
            for one, answer in zip(asking, answers([cast(Descent, one.request) for one in asking], groups)):
                one.answer = answer
    finally:
        for one in members:
            if not one.ended:
                one.cancelled = True
                one.turn()
    return [one.result for one in members]


def answers(requests: Sequence[Descent], groups: dict[Any, Stacked]) -> list[dict[str, Tensor | float]]:
    """Each request's metrics: of one step for all, if they are alike and can be stacked, else of one step each."""
    alike = len(requests) > 1 and len({request.key() for request in requests}) == 1
    if not alike or not isinstance(requests[0].optimiser, ELEMENTWISE):
        return [request.alone() for request in requests]
    names = tuple(id(request.learner) for request in requests)
    if names not in groups:
        groups[names] = Stacked([request.learner for request in requests])
    return groups[names].descend(requests)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in a tensor, a record, or tuples and lists of these."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Record):
        for column in value.columns().values():
            yield from tensors_of(column)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """`value` with the next tensors in the places of its own."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Record):
        changes = {name: with_tensors(column, tensors) for name, column in value.columns().items()}
        return dataclasses.replace(value, **changes)
    if isinstance(value, tuple | list):
        return type(value)(with_tensors(item, tensors) for item in value)
    return value


class Stacked(nn.Module):
    """The networks of several learners of one kind, as slices of stacked tensors, and optimisers over the latter."""

    def __init__(self, learners: Sequence[Any]):
        super().__init__()
        self.learners, self.optimisers = list(learners), dict[str, Any]()
        self.stacks: dict[str, Tensor] = {}
        self.by_own: dict[int, Tensor] = {}
        self.attributes = [
            name for name, value in vars(learners[0]).items() if isinstance(value, Tensor) and value.requires_grad
        ]
        for name, value in vars(learners[0]).items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
        for name, own in [*self.named_parameters(), *self.named_buffers()]:
            self.stacks[name] = self._stack(own, [self._of(learner, name) for learner in learners])
        for name in self.attributes:
            self.stacks[name] = self._stack(getattr(learners[0], name), [getattr(one, name) for one in learners])

    @staticmethod
    def _of(learner: Any, name: str) -> Tensor:
        first, _, rest = name.partition(".")
        *path, last = rest.split(".")
        owner = getattr(learner, first)
        for part in path:
            owner = getattr(owner, part)
        return getattr(owner, last)

    def _stack(self, own: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        stack = torch.stack([tensor.detach() for tensor in tensors])
        for tensor, part in zip(tensors, stack.unbind(), strict=True):
            tensor.data = part
        self.by_own[id(own)] = stack.requires_grad_(own.requires_grad)
        return stack

    def forward(self, loss: Callable[..., Any], part: tuple[Any, ...]) -> Any:
        return loss(*part)

    def descend(self, requests: Sequence[Descent]) -> list[dict[str, Tensor | float]]:
        """`Learner.descend` for all at once: one dictionary of metrics each."""
        first, metrics = requests[0], dict[str, Tensor]()
        optimiser, trained = self.optimiser(requests), None
        if first.trained is not None:
            trained = [self.by_own[id(tensor)] for tensor in first.trained]
        optimiser.zero_grad()
        for number in range(len(first.parts)):
            total, sums = self.losses(first.loss, [request.parts[number] for request in requests])
            (total.sum() / first.rows).backward(inputs=trained)
            for name, value in sums.items():
                metrics[name] = value.detach() / first.rows + metrics.get(name, 0.0)
        if first.grad_norm:
            squares = [p.grad.flatten(1).square().sum(1) for group in optimiser.param_groups for p in group["params"]]
            metrics["grad_norm"] = torch.stack(squares).sum(0).sqrt()
        optimiser.step()
        own = [state["step"] for request in requests for state in request.optimiser.state.values()]
        torch._foreach_add_(own, 1.0)
        return [{name: value[i] for name, value in metrics.items()} for i in range(len(requests))]

    def losses(self, loss: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each learner (K,) and the sums (K,) that it reports."""
        stacked = [torch.stack(same) for same in zip(*(tensors_of(part) for part in parts), strict=True)]
        named = {name: stack for name, stack in self.stacks.items() if name not in self.attributes}
        loose = {name: self.stacks[name] for name in self.attributes}
        learner = self.learners[0]

        def one(named: dict[str, Tensor], loose: dict[str, Tensor], tensors: list[Tensor]) -> Any:
            before = {name: getattr(learner, name) for name in loose}
            vars(learner).update(loose)
            try:
                part = with_tensors(parts[0], iter(tensors))
                total, sums = torch.func.functional_call(self, named, (loss, part))
            finally:
                vars(learner).update(before)
            return total, {name: torch.as_tensor(value) for name, value in sums.items()}

        with using(dataclasses.replace(current(), linear="stacked")):
            return torch.vmap(one)(named, loose, stacked)

    def optimiser(self, requests: Sequence[Descent]) -> Any:
        """The optimiser over the stacks; each learner's own one holds slices of its state."""
        first = requests[0].optimiser
        name = next(name for name, value in vars(requests[0].learner).items() if value is first)
        if name not in self.optimisers:
            stacks = [[self.by_own[id(parameter)] for parameter in group["params"]] for group in first.param_groups]
            groups: Any = [{**group, "params": stack} for group, stack in zip(first.param_groups, stacks)]
            self.optimisers[name] = cast(Any, type(first))(groups)
            self._begin(self.optimisers[name], [request.optimiser for request in requests])
        stacked = self.optimisers[name]
        for group, own in zip(stacked.param_groups, first.param_groups, strict=True):
            group.update({key: value for key, value in own.items() if key != "params"})
            for stack, parameter in zip(group["params"], own["params"], strict=True):
                stacked.state[stack]["step"].copy_(first.state[parameter]["step"])
        return stacked

    @staticmethod
    def _begin(stacked: Any, own: Sequence[Any]) -> None:
        """Moments that were gathered already, or zeros: stacked, and as slices in each learner's optimiser."""
        for stack, *parameters in zip(
            (p for group in stacked.param_groups for p in group["params"]),
            *([p for group in optimiser.param_groups for p in group["params"]] for optimiser in own),
            strict=True,
        ):
            states = [optimiser.state[parameter] for optimiser, parameter in zip(own, parameters, strict=True)]
            for state, parameter in zip(states, parameters, strict=True):
                if not state:
                    device = parameter.device if stacked.defaults.get("fused") else "cpu"
                    state["step"] = torch.zeros((), device=device)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            moments = {key: torch.stack([state[key] for state in states]) for key in states[0] if key != "step"}
            stacked.state[stack] = {"step": states[0]["step"].clone(), **moments}
            for index, state in enumerate(states):
                state.update({key: moment[index] for key, moment in moments.items()})
