"""Method, Learner and Source: the contract between an algorithm and the one loop."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from telos.core import parallel, together
from telos.core.errors import TelosError
from telos.core.numerics import Preset
from telos.core.products import Product
from telos.core.rng import Rng
from telos.data.records import Record

Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class Spec:
    """What a method learns from, and what it was given.

    Args:
        data: a validated record or tokenised data set, or None where experience comes from elsewhere.
        given: the other named arguments of `fit`: model, reference, purpose, env, ...
        steps: the number of optimisation steps asked for.
        device: where tensors live.
        rng: the run's stream; a method takes named streams from it.
        notes: what preparation has to say to the user; kept with the product.
    """

    data: Any
    given: Mapping[str, Any]
    steps: int
    device: torch.device
    rng: Rng
    notes: Mapping[str, str] = field(default_factory=dict)

    def need(self, name: str, why: str) -> Any:
        """`given[name]`, or a TelosError that says what it is for."""
        value = self.given.get(name)
        if value is None:
            raise TelosError(f"'{name}' is missing", expected=why, fix=f"pass {name}=... (or --{name})")
        return value

    def replace(self, **changes: Any) -> Spec:
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)


class Learner(abc.ABC):
    """Owns what changes in training: networks, optimisers (their number and order are its own), counters.

    Everything that must survive a kill is an attribute: modules, optimisers, tensors, ints and floats are found
    by `state`. What is constant and can be rebuilt (a frozen reference, the data) is named in `constant`.
    """

    constant: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def update(self, batch: Any, rng: Rng, micro: int = 1) -> Metrics:
        """One optimisation step of the learner's own order; the batch is taken in `micro` parts."""

    @abc.abstractmethod
    def product(self) -> Product:
        """What is shipped. It may share memory with the learner; `fit` hands it out once training is over."""

    def behaviour(self) -> Product:
        """What a source samples with (it may explore, or be a look-ahead point)."""
        return self.product()

    @final
    def descend(
        self, optimiser: torch.optim.Optimizer, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        parts: Sequence[tuple[Any, ...]], rows: int, trained: Sequence[Tensor] | None = None, grad_norm: bool = False,
    ) -> Metrics:  # fmt: skip
        """One step of an optimiser on the mean of a loss over a batch that is taken in parts: the mean of each sum.

        Args:
            loss: called with each part: the sum to minimise, and sums to report. Of what differs between seeds it
                reads the learner's networks and its part alone, so that several seeds can be computed at once; plain
                numbers that it reads do not change in training, so that it can be compiled.
            parts: what the loss is called with; rows: of all parts.
            trained: what gets gradients; by default all that the loss depends on.
            grad_norm: report the gradient's norm, too.
        """
        step = together.Descent(self, optimiser, loss, parts, rows, trained, grad_norm)
        run = together.member()
        return step.alone() if run is None else run.ask(step)

    @final
    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        """All tensors and numbers that change, by name."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, int | float] = {}
        for name, value in self._changing():
            if isinstance(value, nn.Module):
                tensors |= {f"{name}.{key}": tensor for key, tensor in value.state_dict().items()}
            elif isinstance(value, torch.optim.Optimizer):
                for index, slots in value.state_dict()["state"].items():
                    for slot, content in slots.items():
                        if isinstance(content, Tensor):
                            tensors[f"{name}.{index}.{slot}"] = content
                        else:
                            numbers[f"{name}.{index}.{slot}"] = content
            elif isinstance(value, Tensor):
                tensors[name] = value
            else:
                numbers[name] = value
        return tensors, numbers

    @final
    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        """The inverse of `state`; every key must be there."""
        for name, value in self._changing():
            inside = {k[len(name) + 1 :]: t for k, t in tensors.items() if k.startswith(name + ".")}
            if isinstance(value, nn.Module):
                held = value.state_dict()
                inside = {k: parallel.held_like(t, held[k]) if k in held else t for k, t in inside.items()}
                value.load_state_dict(inside, strict=True)
            elif isinstance(value, torch.optim.Optimizer):
                slots: dict[int, dict[str, Any]] = {}
                parameters = [parameter for group in value.param_groups for parameter in group["params"]]
                single = {k[len(name) + 1 :]: n for k, n in numbers.items() if k.startswith(name + ".")}
                for key, content in [*inside.items(), *single.items()]:
                    index, slot = key.split(".", 1)
                    if isinstance(content, Tensor) and content.shape == parameters[int(index)].shape:
                        content = parallel.held_like(content, parameters[int(index)])
                    slots.setdefault(int(index), {})[slot] = content
                value.load_state_dict({"state": slots, "param_groups": value.state_dict()["param_groups"]})
            elif isinstance(value, Tensor):
                with torch.no_grad():
                    value.copy_(tensors[name])
            else:
                setattr(self, name, type(value)(numbers[name]))

    def _changing(self) -> Iterable[tuple[str, Any]]:
        kinds = (nn.Module, torch.optim.Optimizer, Tensor, int, float)
        for name, value in sorted(vars(self).items()):
            if name not in self.constant and isinstance(value, kinds):
                yield name, value


class Source(abc.ABC):
    """Where experience comes from. A data set ignores `behaviour`; a rollout source samples with it."""

    @abc.abstractmethod
    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Any:
        """The batch for one update; `rng` is this step's stream."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        """What must survive a kill; nothing for sources that depend on the step's stream only."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        """The inverse of `state`."""

    def rests(self) -> bool:
        """Asked after each update from where a checkpoint is due: whether nothing is under way that `state` lacks.

        The checkpoint is put off until it is so; a run that writes nothing asks as well, so that both do the same.
        """
        return True


@dataclass
class Stage:
    """One named stretch of training: it has its own learner and source, and resumes on its own.

    Args:
        first: steps of earlier stages, which `evaluate` counts in.
        evaluated: whether the product is of the kind that `fit` returns, so that `evaluate` is called with it.
    """

    name: str
    learner: Learner
    source: Source
    steps: int
    first: int = 0
    evaluated: bool = True


Stages = Generator[Stage, Product, Product]
"""Yields stages, is sent each one's product, returns the final product."""


@dataclass(frozen=True)
class Method(abc.ABC):
    """An algorithm: its fields are the hyper-parameters, the command line's options and the documentation."""

    data: ClassVar[type | None] = None
    """The record it learns from (Transitions, Preferences, ...); None if experience comes from `given`."""
    accepts: ClassVar[tuple[type, ...]] = ()
    """Further records that `prepare` knows how to use."""
    takes: ClassVar[tuple[str, ...]] = ()
    """What else `fit` may be given: model, reference, purpose, env, ..."""
    trains: ClassVar[bool] = True
    """False for methods that fit nothing (decoding, measures): they need no steps."""
    accumulates: ClassVar[bool] = True
    """False where an update cannot be taken in parts; the method's docstring says why."""
    shares: ClassVar[bool] = False
    """Whether several processes may train it together: its updates go through `split`, `Accumulator` and `added`."""

    @abc.abstractmethod
    def learner(self, spec: Spec, rng: Rng) -> Learner:
        """Networks and optimisers, initialised from `rng`."""

    @abc.abstractmethod
    def source(self, spec: Spec) -> Source:
        """How batches are drawn from `spec`."""

    def prepare(self, spec: Spec) -> Spec:
        """Work before training: tokenise, load models, fit normalisers. Deterministic; repeated on resume."""
        return spec

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        """One stage unless a method has several; they are named, and each resumes on its own."""
        return (yield Stage("main", self.learner(spec, rng.at("init")), self.source(spec), spec.steps))

    @final
    def fit(
        self, source: Any = None, *, steps: int | None = None, seed: int = 0, device: str = "auto",
        out: str | Path | None = None, evaluate_every: int = 0, checkpoint_every: int = 500, micro: int = 1,
        evaluate: Callable[[int, Callable[[], Product]], Mapping[str, float]] | None = None, resume: bool = False,
        seeds: int | None = None, numerics: Preset | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """Trains and returns the product, or a list of products with `seeds`.

        Args:
            source: a record (`telos.load(...)`), a path that `telos.load` reads, or a Source of your own.
            steps: optimisation steps, over all stages unless a method says otherwise; required if it trains.
            out: a folder for metrics, checkpoints and the product; nothing is written without it.
            evaluate: called with (step, product getter) every `evaluate_every` steps and at the end; what it
                returns goes into the metrics.
            micro: parts into which each batch is split, to save memory; results agree within rounding.
            resume: go on with the unfinished run in `out`; bit for bit on a CPU.
            seeds: train this many, from `seed` on, in one process: the same as one after another within rounding, as
                batched networks where that is quicker (`telos.core.together`). Each has a folder `seed-<n>` in `out`.
            numerics: "auto" (this machine's fastest in float32; gradient steps of long runs are compiled), "plain"
                (torch's own), "compiled" (in short runs too, and sampling) or "medium" (as auto, float32 products from
                bfloat16 where the processor can); by default what is in force, most often "auto".
            given: what the method needs besides data: model, reference, purpose, env.

        Raises:
            TelosError: wrong data, options or devices; HealthError: numbers that cannot be learning.
        """
        from telos.core.fit import Run, fit_seeds

        if steps is None and self.trains:
            raise TelosError("'steps' is missing", expected="the number of optimisation steps", fix="pass steps=1000")
        run = Run(
            method=self, data=source, given=given, steps=steps or 0, seed=seed, device=device,
            out=Path(out) if out is not None else None, evaluate=evaluate, evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every, micro=micro, numerics=numerics,
        )  # fmt: skip
        return run.go(resume=resume) if seeds is None else fit_seeds(run, seeds, resume)

    @final
    def options(self) -> dict[str, Any]:
        """The hyper-parameters as JSON; a method held as a field becomes {"use": slug, ...}."""
        from telos.core.registry import class_slug

        result: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Method):
                value = {"use": class_slug(type(value)), **value.options()}
            result[f.name] = list(value) if isinstance(value, tuple) else value
        return result

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Any:
        """The inverse of `options`."""
        from telos.core.registry import method_class

        known = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                raise TelosError(f"{cls.__name__} has no option '{name}'", expected=", ".join(known))
            if isinstance(value, dict) and "use" in value:
                inner = dict(value)
                value = method_class(inner.pop("use")).from_options(inner)
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def summed(losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """For `Learner.descend`: all losses are minimised together, and each is reported."""
    return sum(losses.values(), torch.zeros(())), losses


@dataclass
class Accumulator:
    """Sums losses over the parts of a batch and divides once, so that 8 parts of 1 equal 1 part of 8.

    >>> # total, count = loss(part); accumulator.add(total, count); ...; accumulator.divide(parameters)
    """

    count: Tensor | float = 0.0
    total: Tensor | float = field(default=0.0)

    def add(self, total: Tensor, count: Tensor | float) -> None:
        """Back-propagates a part's summed loss."""
        total.backward()
        self.total = self.total + total.detach()
        self.count = self.count + count

    def divide(self, parameters: Iterable[nn.Parameter]) -> Tensor | float:
        """Divides the gathered gradients by the count and returns the mean loss, over all processes."""
        parameters = list(parameters)
        if parallel.size() > 1:
            whole = [parameter for parameter in parameters if not parallel.sharded(parameter)]
            for parameter in whole:
                # A process without a part of this batch adds nothing.
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            device = parameters[0].device
            self.total, self.count = (torch.as_tensor(x, dtype=torch.float32, device=device).clone() for x in
                                      (self.total, self.count))  # fmt: skip
            parallel.add_up([p.grad for p in whole if p.grad is not None])
            parallel.add_up([self.total, self.count])
        for grads in parallel.apart(p.grad for p in parameters if p.grad is not None):
            shares = parallel.size() if parallel.sharded(grads[0]) else 1
            torch._foreach_div_(grads, float(self.count) / shares)
        return self.total / self.count

    def totals(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sums of these over all processes: for metrics that are summed over this process's share."""
        return parallel.added(*values)


def split(batch: Record, micro: int) -> list[Any]:
    """This process's share of the batch, in `micro` parts (the batch itself for one process and one part)."""
    parts = micro * parallel.size()
    if parallel.even and len(batch) < parts:
        raise TelosError(
            f"a batch of {len(batch)} cannot be shared among {parallel.size()} processes that hold one model together",
            expected=f"{parts} or more in every batch, the last one of an epoch included", fix="another batch_size",
        )  # fmt: skip
    return [batch] if parts == 1 else batch.split(parts)[parallel.rank() :: parallel.size()]
