"""Online: a learner with its policy on a stream of decisions whose feedback comes later, in any order, or never.

    decision = online.act(context, mask=allowed)      # action, log_prob, id
    online.learn(reward, decision.id)                 # once it is known

A folder given as `out` makes the stream survive kill -9: it holds a checkpoint and a journal of all calls since, which
`load_online` replays. Decisions do not depend on how contexts are grouped into calls, except through rounding.
"""

from __future__ import annotations

import abc
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import telos
from telos.core.errors import TelosError
from telos.core.files import explained, folder_atomic, read_json, sync_folder, write_json
from telos.core.method import Method
from telos.core.products import Act, Policy
from telos.core.registry import class_slug, method_class

HEADER, TENSORS = "online.json", "state.safetensors"


@dataclass(frozen=True)
class Decision(Act):
    """What was decided: action and log_prob as in Act, and the id by which `learn` is told its outcome.

    Args:
        id: an int for one context; (B,) int64 for a batch. Ids count the stream's decisions from 0.
    """

    id: Any = None


@dataclass(frozen=True)
class Stream:
    """What a stream consists of: D numbers a context, K actions; names are kept with the policy."""

    context_size: int
    n_actions: int
    seed: int = 0
    context_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.context_size < 1 or self.n_actions < 1:
            raise TelosError(
                "a stream needs contexts and actions", expected="context_size and n_actions of at least 1",
                got=f"context_size={self.context_size}, n_actions={self.n_actions}",
            )  # fmt: skip
        for name, size in (("context_names", self.context_size), ("action_names", self.n_actions)):
            names = tuple(getattr(self, name))
            if names and len(set(names)) != size:
                raise TelosError(f"{name} do not fit the stream", expected=f"{size}, each once", got=str(len(names)))
            object.__setattr__(self, name, names)


class Ledger:
    """Decisions by consecutive id, with their feedback once it is known; the oldest can be forgotten.

    Args:
        columns: name -> an empty tensor (0, ...) with the type and shape of a column's rows.
    """

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = {**columns, "feedback": torch.zeros(0)}
        self.first = self.next = 0
        self.repeated = self.late = 0

    def add(self, **rows: Tensor) -> Tensor:
        """Enters decisions, without feedback; their ids (B,)."""
        rows["feedback"] = torch.full((len(rows["action"]),), torch.nan)
        start, count = self.next - self.first, len(rows["feedback"])
        for name, column in self.columns.items():
            if start + count > len(column):
                # Twice the room each time, so that single decisions cost no copy of the whole.
                grown = column.new_empty((max(2 * len(column), start + count, 64), *column.shape[1:]))
                grown[:start] = column[:start]
                self.columns[name] = column = grown
            column[start : start + count] = rows[name]
        self.next += count
        return torch.arange(self.next - count, self.next)

    def settle(self, ids: Tensor, feedback: Tensor) -> None:
        """Enters feedback; all of it, or none if an id is wrong.

        The same feedback again is ignored and counted in `repeated`; feedback to a decision that was forgotten is
        ignored and counted in `late`.

        Raises:
            TelosError: an id that was never given out, or other feedback than an id already has.
        """
        unknown = (ids < 0) | (ids >= self.next)
        if unknown.any():
            raise TelosError(
                f"no decision has the id {int(ids[unknown][0])}",
                expected=f"an id that act gave, 0 to {self.next - 1}" if self.next else "act before learn",
            )
        kept = ids >= self.first
        places, values = ids[kept] - self.first, feedback[kept]
        # Within one call an id may occur twice, too: the first occurrence settles it.
        _, inverse = places.unique(return_inverse=True)
        earliest = torch.full((int(inverse.max()) + 1 if len(inverse) else 0,), len(places)).scatter_reduce_(
            0, inverse, torch.arange(len(places)), "amin"
        )
        known = self.columns["feedback"][places]
        known = torch.where(known.isnan(), values[earliest[inverse]], known)
        if (known != values).any():
            place = int((known != values).nonzero()[0])
            raise TelosError(
                f"decision {int(places[place]) + self.first} has feedback already",
                expected=f"{float(known[place]):g}, as before (a repeated message is ignored)",
                got=f"{float(values[place]):g}",
                fix="send each outcome once, when it is final",
            )
        fresh = int(self.columns["feedback"][places].isnan()[earliest].sum())
        self.columns["feedback"][places] = values
        self.repeated += len(places) - fresh
        self.late += int((~kept).sum())

    def settled(self, first: int, last: int) -> dict[str, Tensor]:
        """The columns, with `id`, of the decisions first <= id < last that have feedback."""
        first, last = max(first, self.first), min(last, self.next)
        inside = slice(first - self.first, max(last, first) - self.first)
        ids = torch.arange(first, max(last, first))
        known = ~self.columns["feedback"][inside].isnan()
        return {"id": ids[known], **{name: column[inside][known] for name, column in self.columns.items()}}

    def forget(self, before: int) -> None:
        """Drops the decisions with smaller ids."""
        cut = min(before, self.next) - self.first
        if cut > 0:
            self.columns = {name: column[cut : self.next - self.first] for name, column in self.columns.items()}
            self.first += cut

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """All that changes."""
        size = self.next - self.first
        numbers = {"first": self.first, "next": self.next, "repeated": self.repeated, "late": self.late}
        return {name: column[:size] for name, column in self.columns.items()}, numbers

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """The inverse of `state`."""
        self.columns = {name: tensors[name] for name in self.columns}
        self.first, self.next = numbers["first"], numbers["next"]
        self.repeated, self.late = numbers["repeated"], numbers["late"]


class Online(abc.ABC):
    """A learner with its policy on a stream; subclasses say how to decide and when to learn from the ledger.

    Args:
        method: the algorithm and its hyper-parameters; `method.online(**stream)` makes this object again.
        stream: the sizes and the seed.
        columns: what the ledger keeps of each decision besides the feedback (see `Ledger`).
        out: a new folder for checkpoints and the journal; nothing is written without it.
    """

    def __init__(
        self, method: Method, stream: Stream, columns: Mapping[str, Tensor], out: str | Path | None = None
    ) -> None:
        self.method, self.stream, self.ledger = method, stream, Ledger(columns)
        self.out: Path | None = None
        self._journal: Any = None
        if out is not None:
            if Path(out).is_dir() and any(Path(out).iterdir()):
                raise TelosError(
                    f"{out} is not empty", expected="a new folder", fix=f"telos.load_online({str(out)!r}) goes on"
                )
            self.out = Path(out)

    @abc.abstractmethod
    def decide(self, contexts: Tensor, allowed: Tensor) -> tuple[Decision, bool]:
        """Decisions for contexts (B, D) among the allowed actions (B, K), entered in the ledger; and whether the policy
        has changed, which is when a checkpoint is written."""

    @abc.abstractmethod
    def product(self) -> Policy:
        """The policy that decides at present."""

    @abc.abstractmethod
    def check_feedback(self, feedback: Tensor) -> None:
        """Raises TelosError for feedback (B,) that is out of range; it is finite."""

    @abc.abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What changes besides the ledger."""

    @abc.abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """The inverse of `state`."""

    @final
    def act(self, context: Any, *, mask: Any = None) -> Decision:
        """Decides for one context (D,) or a batch (B, D).

        Args:
            mask: (K,) or (B, K) bool, the actions allowed; all of them without it.

        Returns:
            action, log_prob of the policy as it decided, and id: (B,) each, or single ones for one context.

        Raises:
            TelosError: wrong shapes, contexts that are not finite, a row that allows nothing.
        """
        contexts, allowed, single = self._inputs(context, mask)
        if self.out is not None and self._journal is None:
            self.checkpoint()
        decision, changed = self.decide(contexts, allowed)
        self._record(act=contexts, allowed=allowed.int())
        if changed and self.out is not None:
            self.checkpoint()
        if single:
            assert decision.log_prob is not None
            return Decision(decision.action[0], log_prob=decision.log_prob[0], id=int(decision.id[0]))
        return decision

    @final
    def learn(self, feedback: Any, id: Any) -> None:
        """Takes the outcome of decisions: one number and one id, or (B,) of both, in any order and at any time.

        An outcome that is told twice is ignored the second time, and so is one that comes when its decision is no
        longer used (`ledger.repeated` and `ledger.late` count them). An error leaves everything as it was.

        Raises:
            TelosError: an id that act never gave, another outcome than was told before, a value out of range.
        """
        values = torch.as_tensor(feedback, dtype=torch.float32).reshape(-1)
        raw = torch.as_tensor(id).reshape(-1)
        if len(values) != len(raw) or raw.is_floating_point() or raw.dtype == torch.bool:
            raise TelosError(
                "feedback and ids do not fit", expected="one whole-number id for each outcome",
                got=f"{len(values)} outcomes, {len(raw)} ids of {raw.dtype}",
            )  # fmt: skip
        if not values.isfinite().all():
            row = int((~values.isfinite()).nonzero()[0])
            raise TelosError(
                f"feedback for decision {int(raw[row])} is not finite", expected="a finite number",
                got=str(float(values[row])), fix="leave out what is not known: it may come later or never",
            )  # fmt: skip
        self.check_feedback(values)
        self.ledger.settle(raw.long(), values)
        self._record(learn=values, id=raw)

    @final
    def save(self, path: str | Path) -> Path:
        """Writes the whole state into the folder `path`, or nothing; `load_online` goes on from there.

        Decisions made after it are not in it: load a copy that is behind only if nobody acts on those.
        """
        path = Path(path)
        with folder_atomic(path) as folder:
            self._write(folder)
        return path

    @final
    def checkpoint(self) -> None:
        """Writes the state into `out` and begins a new journal; called by itself when the policy has changed."""
        assert self.out is not None
        number = 1 + max((int(p.name) for p in (self.out / "checkpoints").glob("[0-9]*")), default=-1)
        self._close()
        with folder_atomic(self.out / "checkpoints" / f"{number:09d}") as folder:
            self._write(folder)
        with explained(self.out):
            self._journal = (self.out / f"journal-{number:09d}.jsonl").open("a")
            for old in (self.out / "checkpoints").iterdir():
                if old.name != f"{number:09d}":
                    shutil.rmtree(old, ignore_errors=True)
            for journal in self.out.glob("journal-*.jsonl"):
                if journal.name != f"journal-{number:09d}.jsonl":
                    journal.unlink()
            sync_folder(self.out)

    def _write(self, folder: Path) -> None:
        ledger, counts = self.ledger.state()
        tensors, numbers = self.state()
        named = {f"ledger/{name}": tensor for name, tensor in ledger.items()}
        named |= {f"state/{name}": tensor for name, tensor in tensors.items()}
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in named.items()}, folder / TENSORS)
        header = {
            "telos": telos.__version__, "method": class_slug(type(self.method)), "options": self.method.options(),
            "stream": asdict(self.stream), "ledger": counts, "state": numbers, "path": _path(),
        }  # fmt: skip
        write_json(folder / HEADER, header)

    def _record(self, **call: Tensor) -> None:
        """Journals a call before its caller hears of it."""
        if self._journal is not None:
            with explained(Path(self._journal.name)):
                self._journal.write(json.dumps({name: tensor.tolist() for name, tensor in call.items()}) + "\n")
                self._journal.flush()

    def _close(self) -> None:
        if self._journal is not None:
            os.fsync(self._journal.fileno())
            self._journal.close()
            self._journal = None

    def _replay(self, journal: Path) -> None:
        """Makes the journalled calls again; a last line that a kill cut short was never answered."""
        for line in journal.read_text().splitlines() if journal.is_file() else ():
            try:
                call = json.loads(line)
            except json.JSONDecodeError:
                break
            if "act" in call:
                self.decide(torch.tensor(call["act"]), torch.tensor(call["allowed"]) > 0)
            else:
                self.ledger.settle(torch.tensor(call["id"]).long(), torch.tensor(call["learn"]))

    def _resumed(self, folder: Path, header: Mapping[str, Any]) -> Self:
        tensors = load_file(folder / TENSORS)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.ledger.load_state(part("ledger/"), header["ledger"])
        self.load_state(part("state/"), header["state"])
        return self

    def _inputs(self, context: Any, mask: Any) -> tuple[Tensor, Tensor, bool]:
        contexts = torch.as_tensor(context, dtype=torch.float32)
        single = contexts.dim() == 1
        contexts = contexts[None] if single else contexts
        if contexts.dim() != 2 or contexts.shape[1] != self.stream.context_size or not len(contexts):
            size = self.stream.context_size
            raise TelosError(
                "the context does not fit the stream", expected=f"shape ({size},) or (batch, {size})",
                got=str(tuple(torch.as_tensor(context).shape)),
            )  # fmt: skip
        if not contexts.isfinite().all():
            raise TelosError(f"context {int((~contexts.isfinite()).any(-1).nonzero()[0])} is not finite")
        return contexts, allowed_actions(mask, len(contexts), self.stream.n_actions), single


def allowed_actions(mask: Any, rows: int, n_actions: int) -> Tensor:
    """A mask (K,), (B, K) or None as (B, K) bool.

    Raises:
        TelosError: another shape, or a row that allows nothing.
    """
    if mask is None:
        return torch.ones(rows, n_actions, dtype=torch.bool)
    allowed = torch.as_tensor(mask).bool()
    if tuple(allowed.shape) not in ((rows, n_actions), (n_actions,)):
        raise TelosError(
            "the mask of allowed actions does not fit", expected=f"shape ({rows}, {n_actions}) or ({n_actions},)",
            got=str(tuple(allowed.shape)),
        )  # fmt: skip
    allowed = allowed.expand(rows, n_actions)
    if not allowed.any(-1).all():
        row = int((~allowed.any(-1)).nonzero()[0])
        raise TelosError(f"row {row} of the mask allows no action", expected="at least one")
    return allowed


def _path() -> dict[str, Any]:
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads()}


def load_online(path: str | Path) -> Any:
    """Goes on with a stream from a folder that `save` or `out=` wrote: bit for bit, on the same kind of machine.

    The number of threads is set to what it was. From a folder of `out=`, everything that a caller was told is there,
    also after kill -9, and it goes on being journalled there.

    Raises:
        TelosError: no such folder, or files that are damaged.
    """
    path = Path(path)
    folder = path
    if not (folder / HEADER).is_file():
        found = sorted((path / "checkpoints").glob("[0-9]*"))
        if not found:
            raise TelosError(
                f"{path} holds no stream", expected=f"a folder with {HEADER}, or with checkpoints/",
                fix="give the folder that online.save wrote, or that online(out=...) was given",
            )  # fmt: skip
        folder = found[-1]
    header = read_json(folder / HEADER)
    torch.set_num_threads(header["path"]["threads"])
    if header["path"] != _path():
        print(f"{path}: torch changed since; it goes on, but not bit for bit", file=sys.stderr)
    online = method_class(header["method"]).from_options(header["options"]).online(**header["stream"])
    try:
        online._resumed(folder, header)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise TelosError(f"{folder} cannot be read", got=str(error), fix="restore the files") from error
    if folder != path:
        online._replay(path / f"journal-{folder.name}.jsonl")
        online.out = path
        online.checkpoint()
    return online
