"""A claim is a program: arms on paired seeds, and what must hold between them, stated before it is measured.

A claims file `telos/claims/<slug>.py` has top-level functions `arm(trial, **options) -> measures` and
`CLAIMS = {"laptop": Claim(...), "standard": Claim(...)}`. This module loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from telos.core.errors import TelosError
from telos.core.numerics import PLAIN, using
from telos.core.registry import PACKAGE, class_slug, entry
from telos.judge.verdict import Better, Holds, Part, Threshold, Within

if TYPE_CHECKING:
    from telos.core.method import Method
    from telos.core.products import Product
    from telos.core.rng import Rng

Budget = Literal["full", "quick", "digest"]
Measures = dict[str, Any]
"""Metric -> one finite number; and under "points" a list of such dictionaries, the points of a curve."""

SMALL_STEPS, SMALL_COUNT = 20, 64
"""What the budgets "quick" and "digest" leave of steps and of samples."""


@dataclass
class Trial:
    """One run of one arm: its seed and budget, handed to the arm's function.

    Args:
        budget: "full" measures; "quick" runs everything briefly; "digest" also records what training reports.
        digest: the recorded numbers, in the order in which they came.
    """

    seed: int
    budget: Budget = "full"
    digest: list[float] = field(default_factory=list)

    @cached_property
    def rng(self) -> Rng:
        """The seed's streams: the same for every arm, so that worlds and data are shared by name."""
        from telos.core.rng import Rng

        return Rng(self.seed)

    def steps(self, n: int) -> int:
        """n optimisation steps, at most 20 on a small budget."""
        return n if self.budget == "full" else min(n, SMALL_STEPS)

    def count(self, n: int) -> int:
        """n samples (rows, episodes, completions), at most 64 on a small budget."""
        return n if self.budget == "full" else min(n, SMALL_COUNT)

    def fit(
        self,
        method: Method,
        data: Any = None,
        *,
        steps: int,
        evaluate: Callable[[int, Callable[[], Product]], Mapping[str, float]] | None = None,
        evaluate_every: int = 0,
        **given: Any,
    ) -> Any:
        """`method.fit` with this trial's seed and budget, on the CPU; on a small budget it still evaluates once."""
        from telos.core.fit import Run

        steps = self.steps(steps)
        return Run(
            method=method, data=data, given=given, steps=steps, seed=self.seed, device="cpu", evaluate=evaluate,
            evaluate_every=min(evaluate_every, steps), observer=self._observe if self.budget == "digest" else None,
        ).go()  # fmt: skip

    def _observe(self, step: int, metrics: dict[str, float]) -> None:
        self.digest += [metrics[name] for name in sorted(metrics)]


@dataclass(frozen=True)
class Arm:
    """What is compared: a top-level function `run(trial, **options) -> Measures`, and the options.

    Args:
        options: JSON values, or methods (known by their slug and hyper-parameters); part of the cache's key.
        label: how tables and pictures call it; the arm's name where empty.
        group: arms of one group (one method at several settings) share a colour.
    """

    run: Callable[..., Measures]
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "run": f"{self.run.__module__}.{self.run.__qualname__}", "label": self.label, "group": self.group,
            "options": plain(dict(self.options)),
        }  # fmt: skip

    def modules(self) -> set[str]:
        """The modules of the function and of every method among the options, fields of methods included."""
        found = {self.run.__module__}
        waiting = list(self.options.values())
        while waiting:
            value = waiting.pop()
            if isinstance(value, Mapping):
                waiting += value.values()
            elif isinstance(value, list | tuple):
                waiting += value
            elif is_method(value):
                found.add(type(value).__module__)
                waiting += vars(value).values()
        return found


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, as arms and parts, with seeds and margins fixed beforehand.

    Args:
        statement: the claim in one sentence, in our words and about our world.
        source: where the paper says it ("Table 2").
        world: the task, in a few words.
        parts: what must hold; all of them for "confirmed".
        arms: by name; the parts refer to these names.
        seeds: each arm runs on each; at least 5 for a verdict.
        refuted_if: the outcome that would speak against the claim, in words.
        metrics: name -> what it is, with its unit; every metric that a part names.
        minutes: how long it takes on two cores.
        notes: what a reader should know: deviations from the paper, tuning of the world.
        derive: one seed's measures by arm -> further metrics by arm (a new name makes a new row), for what is
            measured over several arms, as a frontier over all settings is. It must give finite numbers always.
        plot: draws the result (the dictionary of result.json) to a path; None for the dots of the judged metrics.
    """

    statement: str
    source: str
    world: str
    parts: tuple[Part, ...]
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...]
    refuted_if: str
    metrics: Mapping[str, str]
    minutes: float
    notes: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, Measures]], Mapping[str, Mapping[str, float]]] | None = None
    plot: Callable[[dict[str, Any], Path], None] | None = None

    def __post_init__(self) -> None:
        if not self.parts or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise TelosError(
                "a claim needs parts and distinct seeds", got=f"{len(self.parts)} parts, seeds {list(self.seeds)}"
            )
        for name, arm in self.arms.items():
            if "." in arm.run.__qualname__ or arm.run.__qualname__ == "<lambda>":
                raise TelosError(f"arm '{name}' runs {arm.run.__qualname__}", expected="a top-level function")
            arm.to_json()
        for part in self.parts:
            if part_metric(part) not in self.metrics:
                raise TelosError(f"{part}: unknown metric", expected=" or ".join(self.metrics), fix="add it to metrics")
            unknown = [arm for arm in part_arms(part) if arm not in self.arms]
            if unknown and self.derive is None:
                raise TelosError(f"{part}: unknown arm '{unknown[0]}'", expected=" or ".join(self.arms))

    def to_json(self) -> dict[str, Any]:
        return {
            "statement": self.statement, "source": self.source, "world": self.world, "refuted_if": self.refuted_if,
            "parts": [part_json(part) for part in self.parts], "metrics": dict(self.metrics),
            "notes": list(self.notes), "minutes": self.minutes, "seeds": list(self.seeds),
        }  # fmt: skip


def load_claims(slug: str) -> dict[str, Claim]:
    """The claims of `slug` by scale; a name with a dot is taken for a module of the caller's own.

    Raises:
        TelosError: no such slug or module, a paper without a claims file, a file without CLAIMS.
    """
    if "." not in slug and not (PACKAGE / "claims" / f"{slug}.py").is_file():
        entry(slug)
        raise TelosError(f"'{slug}' has no claim", fix="`telos papers` shows which papers have one")
    name = slug if "." in slug else f"telos.claims.{slug}"
    try:
        claims = importlib.import_module(name).CLAIMS
    except (ModuleNotFoundError, AttributeError) as error:
        raise TelosError(f"no claims in {name}", expected='CLAIMS = {"laptop": Claim(...)}', got=str(error)) from error
    return claims


def load_claim(slug: str, scale: str) -> Claim:
    """The claim of `slug` at `scale`; TelosError for a scale that it does not have."""
    claims = load_claims(slug)
    if scale not in claims:
        raise TelosError(f"'{slug}' has no scale '{scale}'", expected=" or ".join(claims))
    return claims[scale]


def is_method(value: Any) -> bool:
    """Whether `value` is a Method, asked without importing torch."""
    return any(cls.__qualname__ == "Method" and cls.__module__ == "telos.core.method" for cls in type(value).__mro__)


def plain(value: Any) -> Any:
    """Options as JSON: tuples as lists, methods as {"use": slug, hyper-parameters}; TelosError for anything else."""
    if is_method(value):
        return {"use": class_slug(type(value)), **plain(value.options())}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TelosError(
            "an arm's option cannot be its key", expected="a JSON value or a Method", got=repr(value)[:80]
        ) from error


def part_metric(part: Part) -> str:
    """The metric that the part judges."""
    return part.check if isinstance(part, Holds) else part.metric


def part_arms(part: Part) -> tuple[str, ...]:
    """The arms that the part judges."""
    if isinstance(part, Better | Within):
        return part.a, part.b
    return (part.arm,) if isinstance(part, Holds) else (part.a,)


def part_json(part: Part) -> dict[str, Any]:
    """The part as JSON, with its kind."""
    return {"kind": type(part).__name__, **asdict(part)}


def part_from_json(value: Mapping[str, Any]) -> Part:
    """The inverse of `part_json`."""
    kinds = {kind.__name__: kind for kind in (Better, Within, Holds, Threshold)}
    return kinds[value["kind"]](**{key: item for key, item in value.items() if key != "kind"})


def run_arm(slug: str, scale: str, arm_name: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Runs one arm on one seed: {"measures": {metric: number}, "points": [...], "digest": [...]}.

    Raises:
        TelosError: a judged metric is missing, or a number is not finite; and whatever the arm raises.
    """
    claim = load_claim(slug, scale)
    arm = claim.arms[arm_name]
    trial = Trial(seed, budget)
    with using(PLAIN):  # what is recorded holds on every machine
        measures = dict(arm.run(trial, **arm.options))
    points = [_numbers(point) for point in measures.pop("points", [])]
    numbers = _numbers(measures)
    judged = {part_metric(part) for part in claim.parts if arm_name in part_arms(part)}
    if claim.derive is None and judged - numbers.keys():
        raise TelosError(f"the arm measured no {min(judged - numbers.keys())!r}", got=", ".join(numbers) or "nothing")
    digest = (trial.digest or [numbers[name] for name in sorted(numbers)]) if budget == "digest" else []
    return {"measures": numbers, "points": points, "digest": digest}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise TelosError(
                f"{name!r} is {number}", expected="a finite number",
                fix="a run that diverged needs a score that the claim fixed beforehand",
            )  # fmt: skip
    return numbers
