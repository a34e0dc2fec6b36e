"""Verdicts: what a claim states, part by part, against the measured table of arms.

A table maps arm -> metric -> values [n_seeds], one value a seed, every arm's seeds in the same order. The interval
decides and nothing else; no threshold here depends on what was measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from telos.core.errors import TelosError
from telos.judge.stats import Floats, Interval, binary_mean, paired_binary, paired_t, probability_of_improvement

Status = Literal["confirmed", "not shown", "refuted"]
Table = Mapping[str, Mapping[str, ArrayLike]]

LEAST_SEEDS = 5
"""Fewer seeds than this give no verdict, only an indication."""


@dataclass(frozen=True)
class Better:
    """The mean over seeds of a.metric - b.metric is above `margin`; with `lower_is_better`, of b.metric - a.metric.

    Confirmed when the whole interval lies above the margin, refuted when it all lies below the margin: a real advantage
    that is surely smaller than the margin refutes the statement, which named the margin. `margin` may be negative ("not
    worse by more than").
    """

    a: str
    b: str
    metric: str
    margin: float = 0.0
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        _need_finite("Better", "margin", self.margin)


@dataclass(frozen=True)
class Within:
    """The mean over seeds of a.metric - b.metric is at most `tolerance` (>= 0) in size.

    Confirmed when the interval lies inside [-tolerance, tolerance], refuted when it lies outside entirely.
    """

    a: str
    b: str
    metric: str
    tolerance: float

    def __post_init__(self) -> None:
        _need_finite("Within", "tolerance", self.tolerance)
        if self.tolerance < 0:
            raise TelosError("Within.tolerance is negative", expected="0 or more", got=f"{self.tolerance:g}")


@dataclass(frozen=True)
class Holds:
    """An exact check: the arm's metric named `check` is 1 on every seed. Confirmed when it is, refuted otherwise."""

    check: str
    arm: str


@dataclass(frozen=True)
class Threshold:
    """The mean over seeds of a.metric is `at_least` one constant, `at_most` another, or both (a band).

    Confirmed when the interval lies inside the stated range (ends included), refuted when it lies outside entirely.
    """

    a: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise TelosError("Threshold states nothing", expected="at_least, at_most or both", got="neither")
        for name, bound in (("at_least", self.at_least), ("at_most", self.at_most)):
            if bound is not None:
                _need_finite("Threshold", name, bound)
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise TelosError(
                "Threshold holds for no number",
                expected="at_least <= at_most",
                got=f"at_least={self.at_least:g}, at_most={self.at_most:g}",
            )


Part = Better | Within | Holds | Threshold


@dataclass(frozen=True)
class PartResult:
    """One part, judged.

    values: one per seed. For Better, a.metric - b.metric turned so that above 0 means a is better; for Within,
        a.metric - b.metric; for Threshold and Holds, the arm's own metric.
    interval: of the mean of `values` (95 %); None for Holds, which is exact.
    probability_of_improvement: of a over b, for Better only; drawn beside the interval, it decides nothing.
    """

    part: Part
    status: Status
    values: tuple[float, ...]
    interval: Interval | None = None
    probability_of_improvement: Interval | None = None

    @property
    def seeds(self) -> int:
        return len(self.values)

    def to_json(self) -> dict[str, Any]:
        improvement = self.probability_of_improvement
        return {
            "part": {"kind": type(self.part).__name__, **asdict(self.part)},
            "status": self.status,
            "seeds": self.seeds,
            "values": list(self.values),
            "interval": self.interval.to_json() if self.interval else None,
            "probability_of_improvement": improvement.to_json() if improvement else None,
        }


@dataclass(frozen=True)
class Verdict:
    """All parts, judged; with fewer than five seeds `status` is "indicative", while the parts keep theirs."""

    status: Literal["confirmed", "not shown", "refuted", "indicative"]
    parts: tuple[PartResult, ...]

    @property
    def seeds(self) -> int:
        return self.parts[0].seeds

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "seeds": self.seeds, "parts": [part.to_json() for part in self.parts]}


def judge_part(part: Part, table: Table) -> PartResult:
    """Judge one part against the table.

    The interval is Student's t over seeds (at least two), or an exact one where every value involved is 0 or 1. Raises
    TelosError for an arm or metric that the table lacks, a value that is missing or not finite, and unequal seeds.
    """
    if isinstance(part, Holds):
        values = _metric(table, part.arm, part.check)
        return PartResult(part, "confirmed" if np.all(values == 1) else "refuted", tuple(values.tolist()))

    if isinstance(part, Threshold):
        values = _metric(table, part.a, part.metric)
        interval = binary_mean(values) if _is_binary(values) else paired_t(values)
        lowest = -math.inf if part.at_least is None else part.at_least
        highest = math.inf if part.at_most is None else part.at_most
        return PartResult(part, _inside(interval, lowest, highest), tuple(values.tolist()), interval)

    a, b = _metric(table, part.a, part.metric), _metric(table, part.b, part.metric)
    if len(a) != len(b):
        (longer, n), (shorter, missing) = sorted([(part.a, len(a)), (part.b, len(b))], key=lambda arm: -arm[1])
        raise TelosError(
            f"arm {shorter!r} has no {part.metric!r} for seed {missing}",
            expected=f"{n} seeds, as in arm {longer!r}",
            got=f"{missing}",
            fix="run both arms on the same seeds",
        )
    better, worse = (b, a) if isinstance(part, Better) and part.lower_is_better else (a, b)
    differences = better - worse
    binary = _is_binary(a) and _is_binary(b)
    interval = paired_binary(better, worse) if binary else paired_t(differences)
    if isinstance(part, Within):
        status = _inside(interval, -part.tolerance, part.tolerance)
        return PartResult(part, status, tuple(differences.tolist()), interval)
    status = "confirmed" if interval.low > part.margin else "refuted" if interval.high < part.margin else "not shown"
    # A fixed stream: the same table always gives the same verdict, to the last digit.
    improvement = probability_of_improvement(better, worse, np.random.default_rng(0))
    return PartResult(part, status, tuple(differences.tolist()), interval, improvement)


def judge_parts(parts: Sequence[Part], table: Table) -> Verdict:
    """Confirmed when every part is, refuted when any part is, else not shown; "indicative" below five seeds.

    Raises TelosError as `judge_part` does, and when there are no parts or they rest on different numbers of seeds.
    """
    if not parts:
        raise TelosError("a claim without parts has no verdict", expected="at least one part", got="none")
    results = tuple(judge_part(part, table) for part in parts)
    seeds = [result.seeds for result in results]
    if len(set(seeds)) > 1:
        fewest, most = results[int(np.argmin(seeds))], results[int(np.argmax(seeds))]
        raise TelosError(
            f"the parts rest on different seeds: {fewest.part} lacks seed {fewest.seeds}",
            expected=f"{most.seeds} seeds, as {most.part} has",
            got=f"{fewest.seeds}",
            fix="run every arm on the same seeds",
        )
    statuses = {result.status for result in results}
    if seeds[0] < LEAST_SEEDS:
        return Verdict("indicative", results)
    if "refuted" in statuses:
        return Verdict("refuted", results)
    return Verdict("confirmed" if statuses == {"confirmed"} else "not shown", results)


def _inside(interval: Interval, lowest: float, highest: float) -> Status:
    if lowest <= interval.low and interval.high <= highest:
        return "confirmed"
    return "refuted" if interval.high < lowest or interval.low > highest else "not shown"


def _is_binary(values: Floats) -> bool:
    return bool(np.all((values == 0) | (values == 1)))


def _metric(table: Table, arm: str, metric: str) -> Floats:
    """Values [n_seeds] of an arm's metric, all finite, at least one."""
    if arm not in table:
        raise TelosError(f"no arm {arm!r} (metric {metric!r})", expected=_one_of(table), got=repr(arm))
    if metric not in table[arm]:
        raise TelosError(f"arm {arm!r} has no metric {metric!r}", expected=_one_of(table[arm]), got=repr(metric))
    try:
        values = np.asarray(table[arm][metric], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TelosError(
            f"arm {arm!r}, metric {metric!r}: not numbers", expected="one number a seed", got=str(error)
        ) from error
    if values.ndim != 1 or len(values) == 0:
        raise TelosError(
            f"arm {arm!r}, metric {metric!r}: not one value a seed",
            expected="shape [n_seeds], at least one seed",
            got=f"shape {list(values.shape)}",
            fix="average within each seed (episodes, prompts) first",
        )
    missing = np.flatnonzero(~np.isfinite(values))
    if len(missing):
        raise TelosError(
            f"arm {arm!r}, metric {metric!r}, seed {missing[0]}: no value",
            expected="a finite number for every seed",
            got=f"{values[missing[0]]} (seeds {missing.tolist()})",
            fix="run the missing seeds; a run that failed needs a score that the claim fixed beforehand",
        )
    return values


def _one_of(names: Mapping[str, Any]) -> str:
    return f"one of {', '.join(map(repr, names))}" if names else "an entry, but there are none"


def _need_finite(kind: str, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise TelosError(f"{kind}.{name} is not finite", expected="a finite number", got=f"{value}")
