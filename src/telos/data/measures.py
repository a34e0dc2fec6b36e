"""What a data set of transitions holds: how good its episodes are, and how much of states and actions they cover.

Schweighofer et al., A Dataset Perspective on Offline Reinforcement Learning, CoLLAs 2022 (arXiv 2111.04714):

    TQ(D) = (g(D) - g(D_min)) / (g(D_expert) - g(D_min))      SACo(D) = u(D) / u(D_ref)      lSACo = log u / log u_ref

g is the mean return of whole episodes, D_min a random data set, u the number of unique (state, action) pairs, where
each continuous dimension is put into equal bins between limits that data and reference share. H = - sum p log p over
the pairs' shares is the naive entropy; exp(H) <= u, with equality where all are visited alike.

All is counted in chunks of rows: beside the data, an exact count needs 16 bytes a transition, a hashed one a megabyte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Discrete, Transitions

Hashes = NDArray[np.uint64]
Limits = tuple[Sequence[float], Sequence[float]]
"""Lowest and highest value of each observation, and where actions are continuous of each action after them."""

HISTOGRAM_BINS = 30


@dataclass(frozen=True)
class Spread:
    """One number an episode: mean, quartiles, and a histogram (`counts` between neighbouring `edges`)."""

    mean: float
    least: float
    lower: float
    median: float
    upper: float
    most: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Spread:
        """Of values [episodes], at least one."""
        counts, edges = np.histogram(values, min(HISTOGRAM_BINS, 1 + len(np.unique(values[:10_000]))))
        least, lower, median, upper, most = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        histogram = {"edges": tuple(edges.tolist()), "counts": tuple(counts.tolist())}
        return cls(float(np.mean(values)), least, lower, median, upper, most, **histogram)


@dataclass(frozen=True)
class Measures:
    """What `measure` found; `to_json` gives it as JSON.

    Args:
        origin: where the data came from, if it is known.
        transitions, episodes: how many; the last episode counts although it may be cut.
        ends: how episodes end: {"terminated", "truncated", "recording"}. The last one counts as cut by the end of the
            recording where nothing says that it ended, or where it is truncated and shorter than the longest.
        lengths: steps of all episodes.
        returns: of whole episodes (all but one that the recording cut, unless there is no other), with `discount`.
        positive: share of these with a return above 0.
        unique: unique (state, action) pairs; an estimate (0.6 % standard error) where they are hashed.
        share: unique / transitions: the raw count share. It falls as data grow, so it compares sets of one size only.
        entropy, perplexity: naive entropy of the pairs in nats, and its exponential; None where they are hashed.
        saco, lsaco: against the reference, at `compared` transitions each; None without a reference.
        unique_compared, reference_unique: the pairs that saco divides; None without a reference.
        tq: trajectory quality; None where expert and random return do not differ.
        random_return, expert_return: what TQ lies between; `inferred` says of each name how it was inferred.
        action_coverage: a share a dimension: of the bins between the action space's bounds those that hold an action
            (between the actions' own limits where bounds are infinite); of discrete actions those taken.
        action_shares: of discrete actions, how often each was taken; None for continuous ones.
        constant: columns with a single value, as "observations[3]".
        duplicates: transitions (s, a, r, s', terminated) that repeat an earlier one bit by bit; None where hashed.
        notes: what a reader should know about these numbers.
    """

    origin: str | None
    transitions: int
    episodes: int
    ends: dict[str, int]
    lengths: Spread
    returns: Spread
    positive: float
    discount: float
    bins: int
    counter: str
    unique: float
    share: float
    entropy: float | None
    perplexity: float | None
    saco: float | None
    lsaco: float | None
    compared: int | None
    unique_compared: float | None
    reference_unique: float | None
    tq: float | None
    random_return: float
    expert_return: float
    inferred: dict[str, str]
    action_coverage: tuple[float, ...]
    action_shares: tuple[float, ...] | None
    constant: tuple[str, ...]
    duplicates: int | None
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """All fields, tuples as lists."""
        return json.loads(json.dumps(asdict(self)))


def measure(
    data: Transitions, *, discount: float = 1.0, bins: int = 100, limits: Limits | None = None,
    reference: Transitions | None = None, random_return: float | None = None, expert_return: float | None = None,
    counter: Literal["exact", "hashed"] = "exact", equal_size: bool = True, seed: int = 0,
) -> Measures:  # fmt: skip
    """Counts what a data set holds.

    Args:
        discount: of returns, in (0, 1]; the paper's code uses 1.
        bins: a continuous dimension is divided into, at least 1.
        limits: of the bins; those of the reference by default, without one the data's own.
        reference: what coverage is compared with: in the paper all that an online learner saw, of the same size.
        random_return, expert_return: mean returns (with the same discount) of a random and of an expert policy; where
            one is missing, the lowest or highest return of an episode in data and reference takes its place.
        counter: "exact" sorts 64-bit hashes; "hashed" estimates by HyperLogLog in constant memory.
        equal_size: whether the larger of data and reference is compared by as many rows, drawn at random, as the
            smaller has: the number of unique pairs grows with the size.
        seed: of that draw.

    Raises:
        TelosError: an option out of range, a reference with other columns or actions.
    """
    check_options(discount, bins, counter)
    notes: list[str] = []
    if reference is not None:
        check_alike(data, reference)
    bounds = column_limits(data)
    edges = given_limits(limits, bounds) if limits is not None else bounds
    if limits is None and reference is not None:
        edges = column_limits(reference)
    size = min(len(data), len(reference)) if reference is not None and equal_size else None
    hashing = PairHash(data, edges, bins)
    whole, sampled, copies = count(data, hashing, counter, size, Rng(seed).at("data"), copies=True)
    unique = whole.unique()
    entropy = whole.entropy()
    saco = lsaco = reference_unique = unique_compared = None
    if reference is None:
        notes.append("no reference: SACo is not known, only the raw share of unique pairs, unique / transitions")
    else:
        against = count(reference, hashing, counter, size, Rng(seed).at("reference"))[1]
        unique_compared, reference_unique = sampled.unique(), against.unique()
        saco = unique_compared / reference_unique
        if reference_unique > 1:
            lsaco = math.log(unique_compared) / math.log(reference_unique)
        if size is not None and len(data) != len(reference):
            notes.append(f"SACo compares {size} transitions of each, drawn from the larger set without replacement")
        elif len(data) != len(reference):
            notes.append(f"SACo compares sets of {len(data)} and {len(reference)} transitions")
    found = episodes(data, discount)
    pool = [found.returns] if reference is None else [found.returns, episodes(reference, discount).returns]
    inferred: dict[str, str] = {}
    if random_return is None:
        random_return, inferred["random"] = float(min(map(np.min, pool))), "the lowest return of an episode"
    if expert_return is None:
        expert_return, inferred["expert"] = float(max(map(np.max, pool))), "the highest return of an episode"
    if not inferred and expert_return <= random_return:
        raise TelosError(
            "the expert's return is not above the random policy's", expected="random_return < expert_return",
            got=f"{random_return:g} and {expert_return:g}",
        )  # fmt: skip
    gap = expert_return - random_return
    shares = action_shares(data)
    return Measures(
        origin=data.origin, transitions=len(data), episodes=len(found.lengths), ends=found.ends,
        lengths=Spread.of(found.lengths), returns=Spread.of(found.returns),
        positive=float(np.mean(found.returns > 0)), discount=discount, bins=bins, counter=counter, unique=unique,
        share=unique / len(data), entropy=entropy, perplexity=None if entropy is None else math.exp(entropy),
        saco=saco, lsaco=lsaco, compared=None if reference is None else size or len(data),
        unique_compared=unique_compared, reference_unique=reference_unique,
        tq=float((found.returns.mean() - random_return) / gap) if gap > 0 else None,
        random_return=random_return, expert_return=expert_return, inferred=inferred,
        action_coverage=tuple(action_coverage(data, bounds, bins, shares)),
        action_shares=None if shares is None else tuple(shares.tolist()), constant=constant_columns(data, bounds),
        duplicates=None if copies is None else len(data) - int(copies.unique()), notes=tuple(notes),
    )  # fmt: skip


def check_options(discount: float, bins: int, counter: str) -> None:
    """Raises TelosError for an option out of range."""
    if not 0 < discount <= 1:
        raise TelosError("discount is out of range", expected="above 0, at most 1", got=f"{discount:g}")
    if bins < 1:
        raise TelosError("bins is out of range", expected="1 or more", got=str(bins))
    if counter not in ("exact", "hashed"):
        raise TelosError("no such counter", expected="exact or hashed", got=str(counter))


def check_alike(data: Transitions, reference: Transitions) -> None:
    """Raises TelosError unless both have the same columns and actions: one environment's."""
    for name, own, other in (
        ("observations", data.observations.shape[1], reference.observations.shape[1]),
        ("actions", data.action_space, reference.action_space),
    ):
        same = type(own) is type(other) and getattr(own, "size", own) == getattr(other, "size", other)
        if not same:
            raise TelosError(
                f"{reference.origin or 'the reference'} is of another environment: its {name} differ",
                expected=str(own), got=str(other), fix="compare data sets of one environment",
            )  # fmt: skip


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Consecutive rows, a few megabytes at a time."""
    size = max(1, 2**19 // width)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def arrays(data: Transitions, *names: str) -> list[NDArray[Any]]:
    """Columns as numpy arrays, without a copy where they are on the CPU."""
    return [getattr(data, name).detach().cpu().numpy() for name in names]


def column_limits(data: Transitions) -> NDArray[np.float64]:
    """Lowest and highest values [2, columns]: of observations, and of actions where they are continuous."""
    found: list[NDArray[np.float64]] = []
    for name in ("observations",) if isinstance(data.action_space, Discrete) else ("observations", "actions"):
        (column,) = arrays(data, name)
        parts = [(part.min(0), part.max(0)) for rows in chunks(*column.shape) if len(part := column[rows])]
        found.append(np.stack([np.min([low for low, _ in parts], 0), np.max([high for _, high in parts], 0)]))
    return np.concatenate(found, 1).astype(np.float64)


def given_limits(limits: Limits, bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The user's limits as an array [2, columns]."""
    found = np.asarray(limits, dtype=np.float64)
    if found.shape != bounds.shape or not np.isfinite(found).all() or (found[0] > found[1]).any():
        raise TelosError(
            "limits do not fit the data", expected=f"lowest and highest values, {bounds.shape[1]} each: of "
            "observations, then of actions where they are continuous", got=f"shape {found.shape}",
        )  # fmt: skip
    return found


class PairHash:
    """64-bit hashes of (state, action) pairs: a random number a dimension and bin, combined by exclusive or.

    Values outside the limits count as in the outermost bin; a column whose limits are one number tells nothing.
    """

    def __init__(self, data: Transitions, limits: NDArray[np.float64], bins: int):
        self.bins = bins
        self.states = data.observations.shape[1]
        self.low = limits[0]
        width = limits[1] - limits[0]
        self.scale = np.divide(bins, width, out=np.zeros_like(width), where=width > 0)
        self.offset = np.arange(len(width)) * bins
        size = len(width) * bins
        self.actions = data.action_space.size if isinstance(data.action_space, Discrete) else 0
        self.table = random_words(size + self.actions, "pairs")

    def __call__(self, observations: NDArray[Any], actions: NDArray[Any]) -> Hashes:
        """[rows] hashes of observations [rows, O] with actions [rows, A], or [rows] where they are discrete."""
        if self.actions:
            return scrambled(self.part(observations, slice(None)) ^ self.table[len(self.low) * self.bins + actions])
        states = self.part(observations, slice(self.states))
        return scrambled(states ^ self.part(actions, slice(self.states, None)))

    def part(self, values: NDArray[Any], columns: slice) -> Hashes:
        """[rows]: of some columns."""
        places = (values - self.low[columns]) * self.scale[columns]
        np.clip(places, 0, self.bins - 1, out=places)
        return np.bitwise_xor.reduce(self.table[places.astype(np.int64) + self.offset[columns]], axis=1)


def random_words(count: int, name: str) -> Hashes:
    """Fixed random 64-bit numbers."""
    return Rng(0).at("measures", name).numpy().integers(0, 2**64 - 1, count, dtype=np.uint64, endpoint=True)


def scrambled(words: Hashes) -> Hashes:
    """Each 64-bit word as another one, so that near words become unlike (splitmix64's last steps)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def row_hashes(columns: Sequence[NDArray[Any]], keys: Hashes) -> Hashes:
    """[rows] hashes of the very bits of columns [rows, ...]; 0 and -0 are one."""
    rows = len(columns[0])
    words = np.zeros((rows, 2 * len(keys)), dtype=np.float32)
    start = 0
    for column in columns:
        flat = column.reshape(rows, -1)
        words[:, start : start + flat.shape[1]] = flat
        start += flat.shape[1]
    words += np.float32(0)
    return np.bitwise_xor.reduce(scrambled(words.view(np.uint64) + keys), axis=1)


class Exact:
    """Counts different hashes by sorting them: 8 bytes each."""

    def __init__(self) -> None:
        self.parts: list[Hashes] = []

    def add(self, hashes: Hashes) -> None:
        self.parts.append(hashes)

    def counts(self) -> NDArray[np.int64]:
        """How often each different hash came."""
        whole = np.concatenate(self.parts)
        whole.sort()
        self.parts = [whole]
        first = np.flatnonzero(np.concatenate([[True], whole[1:] != whole[:-1]]))
        return np.diff(first, append=len(whole))

    def unique(self) -> float:
        return len(self.counts())

    def entropy(self) -> float | None:
        """Naive entropy in nats."""
        shares = self.counts() / sum(map(len, self.parts))
        # Rounding may leave it just below 0 or above the logarithm of their number.
        return float(np.clip(-(shares * np.log(shares)).sum(), 0, math.log(len(shares))))


class HyperLogLog:
    """Estimates the number of different hashes by the longest run of zeros in each of 2^15 groups.

    Flajolet et al. 2007, with the estimator of Ertl 2017 (arXiv 1702.01284, section 4), which needs no corrections;
    standard error 1.04 / sqrt(2^15) = 0.6 %.
    """

    BITS = 15

    def __init__(self) -> None:
        self.registers = np.zeros(2**self.BITS, dtype=np.int64)

    def add(self, hashes: Hashes) -> None:
        group = (hashes >> np.uint64(64 - self.BITS)).astype(np.int64)
        # The exponent of a float is the place of the highest bit.
        highest = np.frexp((hashes << np.uint64(self.BITS)).astype(np.float64))[1]
        np.maximum.at(self.registers, group, np.minimum(65 - highest, 65 - self.BITS))

    def unique(self) -> float:
        size = len(self.registers)
        held = np.bincount(self.registers, minlength=66 - self.BITS)
        total = 0.0
        for number in held[:0:-1]:
            total = 0.5 * (total + float(number))
        empty = held[0] / size
        if empty == 1:
            return 0.0
        series, power, weight = empty, empty, 1.0
        while power > 1e-300:
            power, weight = power * power, 2 * weight
            series += power * weight / 2
        return size * size / (2 * math.log(2) * (total + size * series))

    def entropy(self) -> float | None:
        """Not known."""
        return None


COUNTERS: dict[str, type[Exact] | type[HyperLogLog]] = {"exact": Exact, "hashed": HyperLogLog}


def count(
    data: Transitions, hashing: PairHash, counter: str, sample: int | None, rng: Rng, copies: bool = False
) -> tuple[Exact | HyperLogLog, Exact | HyperLogLog, Exact | None]:
    """Counts of all (state, action) pairs, of those in `sample` rows, and of whole transitions where they are exact."""
    pairs: Exact | HyperLogLog = COUNTERS[counter]()
    if sample == len(data):
        sample = None
    drawn = pairs if sample is None else COUNTERS[counter]()
    rows_copied = Exact() if copies and counter == "exact" else None
    names = ("observations", "actions", "rewards", "next_observations", "terminated")
    columns = arrays(data, *names)
    keys = random_words(-(-sum(math.prod(column.shape[1:]) for column in columns) // 2), "rows")
    parts = list(chunks(len(data), sum(column.shape[-1] for column in columns[:2] if column.ndim > 1)))
    generator = rng.numpy()
    sizes = np.array([rows.stop - rows.start for rows in parts])
    quota = None if sample is None else generator.multivariate_hypergeometric(sizes, sample, method="marginals")
    for number, rows in enumerate(parts):
        hashes = hashing(columns[0][rows], columns[1][rows])
        pairs.add(hashes)
        if quota is not None:
            drawn.add(generator.choice(hashes, quota[number], replace=False, shuffle=False))
        if rows_copied is not None:
            rows_copied.add(row_hashes([column[rows] for column in columns], keys))
    return pairs, drawn, rows_copied


@dataclass(frozen=True)
class Episodes:
    """Lengths [episodes], returns [whole episodes], and how many end in which way."""

    lengths: NDArray[np.int64]
    returns: NDArray[np.float64]
    ends: dict[str, int]


def episodes(data: Transitions, discount: float = 1.0) -> Episodes:
    """Where episodes end, how long they are and what they earn; see `Measures` for the last one."""
    rewards, terminated, truncated = arrays(data, "rewards", "terminated", "truncated")
    ends = terminated | truncated
    ends[-1] = True
    last = np.flatnonzero(ends)
    lengths = np.diff(last, prepend=-1)
    cut = not terminated[-1] and (not truncated[-1] or bool(lengths[-1] < lengths.max()))
    ended = int(terminated[last].sum())
    returns = discounted(rewards, last, discount)
    return Episodes(
        lengths,
        returns[:-1] if cut and len(returns) > 1 else returns,
        {"terminated": ended, "truncated": len(last) - ended - cut, "recording": int(cut)},
    )


def discounted(rewards: NDArray[Any], last: NDArray[np.int64], discount: float) -> NDArray[np.float64]:
    """[episodes] sums of discounted rewards, where episodes end at rows `last`."""
    first = np.concatenate([[0], last[:-1] + 1])
    found = np.zeros(len(last))
    for rows in chunks(len(rewards), 2):
        a, b = np.searchsorted(last, [rows.start, rows.stop - 1])
        inside = np.minimum(last[a : b + 1] + 1, rows.stop) - np.maximum(first[a : b + 1], rows.start)
        episode = np.repeat(np.arange(b + 1 - a), inside)
        age = np.arange(rows.start, rows.stop) - first[a : b + 1][episode]
        weighted = rewards[rows] * np.float64(discount) ** age
        found[a : b + 1] += np.bincount(episode, weighted, b + 1 - a)
    return found


def mean_return(data: Transitions, discount: float = 1.0) -> float:
    """The mean return of whole episodes: what `random_return` and `expert_return` want of a data set."""
    return float(episodes(data, discount).returns.mean())


def action_shares(data: Transitions) -> NDArray[np.float64] | None:
    """How often each discrete action was taken; None for continuous actions."""
    if not isinstance(data.action_space, Discrete):
        return None
    return np.bincount(arrays(data, "actions")[0], minlength=data.action_space.size) / len(data)


def action_coverage(
    data: Transitions, bounds: NDArray[np.float64], bins: int, shares: NDArray[np.float64] | None
) -> list[float]:
    """A share a dimension: see `Measures`."""
    if isinstance(data.action_space, Discrete):
        assert shares is not None
        return [float(np.mean(shares > 0))]
    (actions,) = arrays(data, "actions")
    limits = np.array([data.action_space.low, data.action_space.high])
    limits = np.where(np.isfinite(limits), limits, bounds[:, -data.action_space.size :])
    width = np.where(limits[1] > limits[0], limits[1] - limits[0], 1.0)
    held = np.zeros((bins, actions.shape[1]), dtype=bool)
    for rows in chunks(*actions.shape):
        places = np.clip((actions[rows] - limits[0]) * (bins / width), 0, bins - 1).astype(np.int64)
        held[places, np.arange(actions.shape[1])] = True
    return held.mean(0).tolist()


def constant_columns(data: Transitions, bounds: NDArray[np.float64]) -> tuple[str, ...]:
    """Columns of observations and actions with one value."""
    states = data.observations.shape[1]
    places = np.flatnonzero(bounds[0] == bounds[1]).tolist()
    found = [f"observations[{i}]" if i < states else f"actions[{i - states}]" for i in places]
    shares = action_shares(data)
    return tuple([*found, "actions"] if shares is not None and shares.max() == 1 else found)
