"""Records: what experience looks like once it has passed the door. Immutable, columns of equal length.

`Record` gives every record indexing, splitting and moving between devices; a batch is the same type as the
data set it was drawn from.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError

HASHED_ROWS = 1 << 16
Message = dict[str, Any]
Text = str | list[Message]
"""A plain text, or a conversation as a list of {"role", "content"} messages."""


@functools.cache
def names_of(record: type[Record]) -> tuple[str, ...]:
    """The names of its fields."""
    return tuple(one.name for one in fields(record))


@dataclass(frozen=True)
class Record:
    """Columns of equal length N; every Tensor or Record field is a column, anything else describes them all."""

    def columns(self) -> dict[str, Any]:
        """The fields that have one row an item."""
        return {name: v for name in names_of(type(self)) if isinstance(v := getattr(self, name), Tensor | Record)}

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    def __getitem__(self, index: Any) -> Self:
        """The rows at `index` (slice, integer tensor or boolean mask)."""
        return replace(self, **{name: column[index] for name, column in self.columns().items()})

    def take(self, index: Tensor) -> Self:
        """The rows at `index` (K,), int64 and >= 0: as with brackets, sooner."""
        rows = {
            n: c.take(index) if isinstance(c, Record) else c.index_select(0, index) for n, c in self.columns().items()
        }
        return replace(self, **rows)

    def to(self, device: torch.device | str) -> Self:
        """The same record on `device`."""
        return replace(self, **{name: column.to(device) for name, column in self.columns().items()})

    def split(self, parts: int) -> list[Self]:
        """`parts` consecutive pieces of nearly equal length, for accumulation; fewer if there are fewer rows."""
        return [self[piece] for piece in torch.arange(len(self)).tensor_split(min(parts, len(self)))]

    def fingerprint(self) -> str:
        """A hash of the contents, to recognise the same data on resume."""
        digest = hashlib.blake2b(digest_size=16)
        for name, column in self.columns().items():
            digest.update(name.encode())
            if isinstance(column, Record):
                digest.update(column.fingerprint().encode())
            else:
                for rows in column.detach().split(HASHED_ROWS):  # a mapped file may be larger than memory
                    # A copy, since torch leaves odd strides (0 for a dimension of 1) as they are even in `contiguous`.
                    flat = rows.cpu().flatten().clone(memory_format=torch.contiguous_format)
                    digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass(frozen=True)
class Box:
    """A continuous space: bounds (D,) as tuples, so that it is JSON and part of a product's configuration."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.low)


@dataclass(frozen=True)
class Discrete:
    """`size` actions 0 .. size-1."""

    size: int


@dataclass(frozen=True)
class Transitions(Record):
    """One row a time step, episodes one after another in order.

    Args:
        observations: (N, O) float32.
        actions: (N, A) float32 within `action_space`, or (N,) int64 for a discrete one.
        rewards: (N,) float32; where there are several responses, the main one.
        next_observations: (N, O) float32; at an episode's end the true last observation.
        terminated: (N,) bool: the task itself ended; nothing follows, bootstrapping reads this only.
        truncated: (N,) bool: the recording was cut (time limit, end of the file).
        action_space: bounds or the number of actions; inferred bounds are not accepted.
        origin: what `telos.load` was given, for resume; None for data made in memory.
        log_probs: (N,) float32: log-probability or log-density of each action under the policy that took it, where it
            was recorded: what importance sampling divides by.
        auxiliary: (N, m-1) float32: further responses to each action beside the main one, `rewards`.
        auxiliary_names: m-1 names of them; "auxiliary0", ... where none are given.
        observation_names, action_names: what columns and discrete actions mean, where it is known; else empty.

    Raises:
        TelosError: naming the column and the first bad row.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor
    truncated: Tensor
    action_space: Box | Discrete
    origin: str | None = None
    log_probs: Tensor | None = None
    auxiliary: Tensor | None = None
    auxiliary_names: tuple[str, ...] = ()
    observation_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    @classmethod
    def validated(
        cls,
        *,
        action_space: Box | Discrete,
        origin: str | None = None,
        auxiliary_names: Sequence[str] = (),
        observation_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        **columns: Any,
    ) -> Transitions:
        """Builds the record from array-likes and checks shapes, types, finiteness, action range and names."""
        where = origin or "transitions"
        missing = [f.name for f in fields(cls)[:6] if columns.get(f.name) is None]
        if missing:
            raise TelosError(
                f"{where}: column '{missing[0]}' is missing",
                expected=", ".join(f.name for f in fields(cls)[:6]),
                got=", ".join(sorted(columns)) or "nothing",
                fix=f"add the column '{missing[0]}'",
            )
        discrete = isinstance(action_space, Discrete)
        tensors: dict[str, Tensor] = {}
        optional = [name for name in ("log_probs", "auxiliary") if columns.get(name) is not None]
        for name in [*(f.name for f in fields(cls)[:6]), *optional]:
            array = np.asarray(columns[name])
            if array.dtype.kind not in "fiub" or array.ndim == 0:
                raise TelosError(
                    f"{where}: column '{name}' has type {array.dtype}",
                    expected="numbers, one row a step",
                    fix="convert the column to float32 (flags to bool)",
                )
            kind = torch.bool if name in ("terminated", "truncated") else torch.float32
            if name == "actions" and discrete:
                kind = torch.int64
                if array.size != len(array) or (array != np.round(array)).any():
                    raise TelosError(
                        f"{where}: column 'actions' does not hold discrete actions",
                        expected="one whole number a row",
                        got=f"shape {array.shape}, type {array.dtype}",
                        fix="state the bounds of a continuous space",
                    )
                array = array.reshape(len(array), 1)
            elif name in ("rewards", "terminated", "truncated", "log_probs"):
                array = array.reshape(len(array), int(np.prod(array.shape[1:])))
                if array.shape[1] != 1:
                    raise TelosError(f"{where}: column '{name}' has {array.shape[1]} values a row", expected="one")
                array = array[:, 0]
            elif array.ndim == 1:
                array = array[:, None]
            flat = array.ndim == 2 and (name != "auxiliary" or array.shape[1] > 0)
            if name in ("observations", "next_observations", "actions", "auxiliary") and not flat:
                raise TelosError(
                    f"{where}: column '{name}' has shape {array.shape}",
                    expected="(rows, features)",
                    fix="flatten each row to a vector",
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array))[0][0])
                raise TelosError(
                    f"{where}: column '{name}', row {row} is not finite",
                    expected="finite numbers",
                    got=str(array[row]),
                    fix="remove or mend that row",
                )
            if kind == torch.int64:
                array = array[:, 0]
            tensors[name] = torch.as_tensor(np.ascontiguousarray(array)).to(kind)
        count = len(tensors["observations"])
        if count == 0:
            raise TelosError(f"{where}: no transitions", expected="at least one row")
        for name, column in tensors.items():
            if len(column) != count:
                raise TelosError(
                    f"{where}: column '{name}' has {len(column)} rows", expected=f"{count}, as 'observations'"
                )
        if tensors["observations"].shape != tensors["next_observations"].shape:
            raise TelosError(
                f"{where}: column 'next_observations' has shape {tuple(tensors['next_observations'].shape)}",
                expected=f"{tuple(tensors['observations'].shape)}, as 'observations'",
            )
        check_actions(tensors["actions"], action_space, where)
        if discrete and "log_probs" in tensors and (tensors["log_probs"] > 1e-4).any():
            row = int((tensors["log_probs"] > 1e-4).nonzero()[0])
            raise TelosError(
                f"{where}: column 'log_probs', row {row} is no log-probability",
                expected="0 or less",
                got=str(float(tensors["log_probs"][row])),
                fix="give logarithms of the probabilities",
            )
        responses = tensors["auxiliary"].shape[1] if "auxiliary" in tensors else 0
        labels = auxiliary_names or [f"auxiliary{i}" for i in range(responses)]
        return cls(
            **tensors,
            action_space=action_space,
            origin=origin,
            auxiliary_names=checked_names("auxiliary_names", labels, (responses,), where),
            observation_names=checked_names(
                "observation_names", observation_names, (0, tensors["observations"].shape[1]), where
            ),
            action_names=checked_names("action_names", action_names, (0, action_space.size), where),
        )


def checked_names(what: str, names: Sequence[str], counts: tuple[int, ...], where: str) -> tuple[str, ...]:
    """The names as a tuple; TelosError unless there are as many as one of `counts`, each once."""
    if len(names) not in counts or len(set(names)) < len(names):
        raise TelosError(
            f"{where}: {what} do not fit the columns", expected=f"{counts[-1]} names, each once",
            got=", ".join(map(str, names)) or "none",
        )  # fmt: skip
    return tuple(map(str, names))


def check_actions(actions: Tensor, space: Box | Discrete, where: str) -> None:
    """Raises TelosError for the first action outside `space` (a relative tolerance of 1e-4 for rounding)."""
    if isinstance(space, Discrete):
        bad = (actions < 0) | (actions >= space.size)
        expected = f"an integer in 0..{space.size - 1}"
    else:
        if actions.shape[-1] != space.size:
            raise TelosError(
                f"{where}: actions have {actions.shape[-1]} dimensions", expected=f"{space.size}, as the action space"
            )
        low, high = torch.tensor(space.low), torch.tensor(space.high)
        slack = 1e-4 * torch.clamp(high - low, max=1e6)
        bad = ((actions < low - slack) | (actions > high + slack)).any(-1)
        expected = f"within [{list(space.low)}, {list(space.high)}]"
    if bad.any():
        row = int(bad.nonzero()[0])
        raise TelosError(
            f"{where}: column 'actions', row {row} is out of range",
            expected=expected,
            got=str(actions[row].tolist()),
            fix="clip or rescale the actions, or state the right bounds",
        )


@dataclass(frozen=True)
class LoggedBandit(Record):
    """One row a decision of a contextual bandit: what was seen, what could be done, what was done, what it earned.

    Args:
        contexts: (N, D) float32.
        actions: (N,) int64 in 0..K-1, each allowed in its row.
        rewards: (N,) float32, finite.
        allowed: (N, K) bool: the actions that could have been taken.
        timestamps: (N,) float64: when each decision was made, in any unit; rows stand in this order.
        propensities: (N,) float32 in (0, 1]: the probability with which the logging policy took the action; None
            where it was not recorded (such a log can be fitted, but no policy can be evaluated on it).
        received: (N,) float64: when each reward became known, not before its timestamp; None if at once.
        action_names: K names, the meaning of each action.
        context_names: D names; "country=NL" is 1 where the column country holds NL and 0 elsewhere.
        origin: what `telos.load` was given, for resume; None for data made in memory.

    Raises:
        TelosError: naming the column and the first bad row, counted from 0.
    """

    contexts: Tensor
    actions: Tensor
    rewards: Tensor
    allowed: Tensor
    timestamps: Tensor
    propensities: Tensor | None = None
    received: Tensor | None = None
    action_names: tuple[str, ...] = ()
    context_names: tuple[str, ...] = ()
    origin: str | None = None

    @property
    def n_actions(self) -> int:
        """K."""
        return self.allowed.shape[1]

    def need_propensities(self, why: str) -> Tensor:
        """(N,) the propensities.

        Raises:
            TelosError: they were not logged; `why` names what needs them.
        """
        if self.propensities is None:
            raise TelosError(
                f"{self.origin or 'the log'} has no propensities",
                expected=f"the probability of each logged action: {why} divides by it",
                fix="log them as a column 'propensity'; they cannot be reconstructed afterwards",
            )
        return self.propensities

    @classmethod
    def validated(
        cls,
        *,
        contexts: Any,
        actions: Any,
        rewards: Any,
        allowed: Any = None,
        timestamps: Any = None,
        propensities: Any = None,
        received: Any = None,
        n_actions: int | None = None,
        action_names: Sequence[str] = (),
        context_names: Sequence[str] = (),
        origin: str | None = None,
    ) -> LoggedBandit:
        """Builds the record from array-likes and checks shapes, types, ranges and that each action was allowed.

        Without `allowed` all actions are (how many comes from `n_actions` or `action_names`); without `timestamps`
        they are 0..N-1. Names that are not given are "0", "1", ... for actions and "x0", "x1", ... for contexts.
        Rows are put in the order of their timestamps, rows of one time stay in theirs.
        """
        where = origin or "logged bandit"
        given = {
            "contexts": contexts, "actions": actions, "rewards": rewards, "allowed": allowed,
            "timestamps": timestamps, "propensities": propensities, "received": received,
        }  # fmt: skip
        arrays: dict[str, np.ndarray] = {}
        for name, values in given.items():
            if values is None:
                continue
            array = np.asarray(values)
            wide = name in ("contexts", "allowed")
            if array.dtype.kind not in "fiub" or array.ndim != 1 + wide:
                raise TelosError(
                    f"{where}: column '{name}' has type {array.dtype} and shape {array.shape}",
                    expected="numbers of shape (rows, columns)" if wide else "one number a row",
                )
            with np.errstate(over="ignore"):
                finite = np.isfinite(array.astype(np.float64 if name in ("timestamps", "received") else np.float32))
            if not finite.all():
                row = int(np.argwhere(~finite)[0][0])
                raise TelosError(
                    f"{where}: column '{name}', row {row} is not finite", expected="finite numbers in float32",
                    got=str(array[row]), fix="remove or mend that row",
                )  # fmt: skip
            arrays[name] = array
        rows = len(arrays["contexts"])
        if rows == 0:
            raise TelosError(f"{where}: no decisions", expected="at least one row")
        size = arrays["allowed"].shape[1] if allowed is not None else n_actions or len(action_names)
        if not size:
            raise TelosError(
                f"{where}: the number of actions is missing", expected="'allowed', 'n_actions' or 'action_names'"
            )
        arrays.setdefault("allowed", np.ones((rows, size), bool))
        arrays.setdefault("timestamps", np.arange(rows, dtype=np.float64))
        names = tuple(str(name) for name in action_names) or tuple(map(str, range(size)))
        features = tuple(str(name) for name in context_names) or tuple(
            f"x{i}" for i in range(arrays["contexts"].shape[1])
        )
        for label, width, count in (
            ("n_actions", size, n_actions or size),
            ("action_names", size, len(set(names))),
            ("context_names", arrays["contexts"].shape[1], len(set(features))),
        ):
            if width != count:
                raise TelosError(
                    f"{where}: {label} does not fit the columns", expected=f"{width}, each once", got=str(count)
                )
        for name, array in arrays.items():
            if len(array) != rows:
                raise TelosError(f"{where}: column '{name}' has {len(array)} rows", expected=f"{rows}, as 'contexts'")
        order = np.argsort(arrays["timestamps"], kind="stable")
        taken = arrays["actions"]

        def refuse(bad: np.ndarray, name: str, expected: str, fix: str) -> None:
            if bad.any():
                row = int(np.argmax(bad))
                raise TelosError(
                    f"{where}: column '{name}', row {row} is out of range", expected=expected,
                    got=str(arrays[name][row]), fix=fix,
                )  # fmt: skip

        refuse(
            (taken != np.round(taken)) | (taken < 0) | (taken >= size), "actions", f"an integer in 0..{size - 1}",
            "give the right number of actions, or mend that row",
        )  # fmt: skip
        taken = taken.astype(np.int64)
        forbidden = ~arrays["allowed"].astype(bool)[np.arange(rows), taken]
        if forbidden.any():
            row = int(np.argmax(forbidden))
            raise TelosError(
                f"{where}: row {row} takes the action '{names[taken[row]]}', which was not allowed",
                expected="an action whose place in 'allowed' is true",
                got="allowed: " + ", ".join(n for n, a in zip(names, arrays["allowed"][row]) if a),
                fix="mend 'allowed' or the action of that row",
            )
        if propensities is not None:
            p = arrays["propensities"].astype(np.float32)
            refuse(
                (p <= 0) | (p > 1 + 1e-5), "propensities", "a probability above 0, at most 1",
                "log the probability with which the action was really taken; an action taken had more than 0",
            )  # fmt: skip
            arrays["propensities"] = np.minimum(p, 1.0)
        if received is not None:
            refuse(
                arrays["received"] < arrays["timestamps"], "received", "not before the decision's timestamp",
                "mend that row; both columns need the same unit",
            )  # fmt: skip
        kinds = {"actions": np.int64, "allowed": bool, "timestamps": np.float64, "received": np.float64}
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(array[order], dtype=kinds.get(name, np.float32)))
            for name, array in arrays.items()
        }
        return cls(**tensors, action_names=names, context_names=features, origin=origin)


@dataclass(frozen=True)
class Preferences:
    """Pairs of texts as TRL and the hub have them: what was chosen and what was rejected for a prompt.

    Args:
        prompts: N texts or conversations; None where the prompt is implicit, that is, the common beginning of
            both texts (found later in token space).
        chosen, rejected: N texts or lists of messages.
        origin: what `telos.load` was given.
        closed: False where the texts were cut off: then no end token is learnt after them.
    """

    prompts: Sequence[Text | None]
    chosen: Sequence[Text]
    rejected: Sequence[Text]
    origin: str | None = None
    closed: bool = True

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Sequence[int] | slice) -> Preferences:
        take = range(len(self))[index] if isinstance(index, slice) else index
        return Preferences(
            [self.prompts[i] for i in take],
            [self.chosen[i] for i in take],
            [self.rejected[i] for i in take],
            self.origin,
            self.closed,
        )

    def fingerprint(self) -> str:
        return fingerprint_texts(self.prompts, self.chosen, self.rejected, *([] if self.closed else [["open"]]))


@dataclass(frozen=True)
class Demonstrations:
    """Prompts with the completions to imitate; a prompt of None means plain language modelling of the text."""

    prompts: Sequence[Text | None]
    completions: Sequence[Text]
    origin: str | None = None

    def __len__(self) -> int:
        return len(self.completions)

    def __getitem__(self, index: Sequence[int] | slice) -> Demonstrations:
        take = range(len(self))[index] if isinstance(index, slice) else index
        return Demonstrations([self.prompts[i] for i in take], [self.completions[i] for i in take], self.origin)

    def fingerprint(self) -> str:
        return fingerprint_texts(self.prompts, self.completions)


@dataclass(frozen=True)
class Prompts:
    """Prompts alone: completions come from the policy, their worth from a purpose.

    Args:
        columns: what else the data says of each prompt (a reference answer, ...): name -> N values. A purpose that
            names a column is given it.
    """

    prompts: Sequence[Text]
    origin: str | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if len(column) != len(self.prompts):
                raise TelosError(
                    f"{self.origin or 'prompts'}: column '{name}' has {len(column)} rows",
                    expected=f"{len(self.prompts)}, one for each prompt",
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: Sequence[int] | slice) -> Prompts:
        take = range(len(self))[index] if isinstance(index, slice) else index
        columns = {name: [column[i] for i in take] for name, column in self.columns.items()}
        return Prompts([self.prompts[i] for i in take], self.origin, columns)

    def fingerprint(self) -> str:
        """Of the prompts alone, as ever, where there are no columns."""
        if not self.columns:
            return fingerprint_texts(self.prompts)
        return fingerprint_texts(self.prompts, list(self.columns), *self.columns.values())


def fingerprint_texts(*columns: Sequence[Text | None]) -> str:
    """A hash of columns of texts."""
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        for text in column:
            digest.update(repr(text).encode())
            digest.update(b"\x1e")
        digest.update(b"\x1d")
    return digest.hexdigest()


@dataclass(frozen=True)
class Rankings:
    """Prompts with K completions each, best first.

    Args:
        prompts: N texts or conversations (None: implicit, the common beginning of the completions).
        completions: N tuples of the same length K >= 2.
    """

    prompts: Sequence[Text | None]
    completions: Sequence[Sequence[Text]]
    origin: str | None = None

    def __post_init__(self) -> None:
        widths = {len(group) for group in self.completions}
        if len(widths) > 1 or min(widths, default=2) < 2:
            raise TelosError(
                f"{self.origin or 'rankings'}: groups of {sorted(widths)} completions",
                expected="the same K >= 2 for all",
                fix="cut or drop the groups that differ",
            )

    def __len__(self) -> int:
        return len(self.completions)

    def fingerprint(self) -> str:
        return fingerprint_texts(self.prompts, [list(group) for group in self.completions])  # type: ignore[arg-type]
