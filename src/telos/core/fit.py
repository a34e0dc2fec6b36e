"""The one training loop: stages, metrics, checkpoints, resume."""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import telos
from telos.core import parallel, together
from telos.core.errors import TelosError
from telos.core.files import explained, folder_atomic, read_json, sync_folder, write_atomic, write_json
from telos.core.health import Health
from telos.core.method import Method, Source, Spec, Stage, Stages
from telos.core.numerics import PLAIN, Numerics, current, preset, using
from telos.core.products import Product, load_product
from telos.core.progress import Progress
from telos.core.registry import class_slug, method_class
from telos.core.rng import Rng
from telos.data.records import Record

LOG_EVERY = 10


def resolve_device(name: str) -> torch.device:
    """A device by name; "auto" is a GPU where there is one.

    Raises:
        TelosError: a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TelosError(
            f"device '{name}' cannot be used", got=str(error).splitlines()[0], fix="--device cpu"
        ) from error
    return device


def numerical_path(device: torch.device) -> dict[str, Any]:
    """What the bits of a run depend on besides seed and code: written into the run and compared on resume."""
    return {
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        **asdict(current()),
    }


@dataclass
class Run:
    """One call of `fit`, on disk if `out` is given.

    The folder holds run.json (all that resume needs), metrics.jsonl, checkpoints/<stage>-<step>/, stages/<name>/
    (products of finished stages) and, when done, product/.
    """

    method: Method
    data: Any
    given: Mapping[str, Any]
    steps: int
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    evaluate: Callable[[int, Callable[[], Product]], Mapping[str, float]] | None = None
    evaluate_every: int = 0
    checkpoint_every: int = 500
    micro: int = 1
    observer: Callable[[int, dict[str, float]], None] | None = None
    numerics: str | None = None
    _metrics_file: Any = field(default=None, repr=False)
    _shards: Any = field(default=None, repr=False)

    def go(self, *, resume: bool = False) -> Any:
        """Trains to the end, from the newest checkpoint if `resume`, and returns the product."""
        with using(self._numerics(resume)):
            return self._go(resume)

    def begun(self) -> bool:
        """Whether there is something to resume."""
        return self.out is not None and (self.out / "run.json").is_file()

    def _numerics(self, resume: bool) -> Numerics:
        """How numbers are computed: as the run that is resumed has it, else as this one is asked to."""
        if resume and self.out is not None and self.begun():
            known, path = {f.name for f in fields(Numerics)}, read_json(self.out / "run.json")["path"]
            return replace(PLAIN, **{name: value for name, value in path.items() if name in known})
        path = current() if self.numerics is None else preset(self.numerics)
        return path.settled(self.steps, resolve_device(self.device))

    def _go(self, resume: bool) -> Any:
        if self.steps < 0 or self.micro < 1 or self.checkpoint_every < 1:
            raise TelosError(
                "steps, micro and checkpoint_every must be positive",
                got=f"steps={self.steps}, micro={self.micro}, checkpoint_every={self.checkpoint_every}",
            )
        if self.micro > 1 and not self.method.accumulates:
            raise TelosError(
                f"{type(self.method).__name__} cannot take a batch in parts",
                got=f"micro={self.micro}",
                fix="leave micro at 1, or use a smaller batch_size",
            )
        unread = sorted(
            name for name, value in self.given.items() if value is not None and name not in self.method.takes
        )
        if unread:
            raise TelosError(
                f"{type(self.method).__name__} does not use '{unread[0]}'",
                expected=", ".join(self.method.takes) or "nothing besides data",
                fix=f"leave {unread[0]} out",
            )
        if resume and self.out is None:
            raise TelosError("nothing to resume", expected="the folder of a run", fix="pass out=...")
        device = self._device()
        if resume and self.out is not None and (self.out / "product").is_dir():
            return load_product(self.out / "product", device)
        data = self._load(self.data)
        self.given = named(self.given)
        header = self._header(data, device)
        self._open(header, resume)
        try:
            rng = Rng(self.seed).at(class_slug(type(self.method)))
            spec = self.method.prepare(Spec(data, self.given, self.steps, device, rng))
            self._recognise(spec, header, resume)
            self._shards = self._shared_out(spec)
            product = self._stages(self.method.stages(spec, rng), header, rng, device)
            product.provenance = {**header, "notes": dict(spec.notes)}
            product.eval()
            if self.out is not None and self._writes:
                product.save(self.out / "product")
                self._begin(header)
                shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
            parallel.wait()
        finally:
            self._close()
        return product

    def _device(self) -> torch.device:
        """The device; where several processes were launched together, this one's, and they become a group."""
        processes = importlib.import_module("telos.scale.processes")
        if processes.launched() == 1:
            return resolve_device(self.device)
        if not self.method.shares:
            raise TelosError(
                f"{type(self.method).__name__} cannot be trained by several processes",
                got=f"{processes.launched()} processes", fix="start one",
            )  # fmt: skip
        return processes.join(self.device)

    def _shared_out(self, spec: Spec) -> Any:
        """The model in parts, where several processes were launched to hold it together; else None."""
        sharding = importlib.import_module("telos.scale.sharding") if parallel.size() > 1 else None
        return sharding.Shards(self.method, spec) if sharding is not None and sharding.wanted() else None

    @property
    def _writes(self) -> bool:
        """Whether this process writes the run's files."""
        return self.out is not None and parallel.leads()

    def _stages(self, stages: Stages, header: dict[str, Any], rng: Rng, device: torch.device) -> Product:
        """Runs the stages in order. The header is written once the first one stands: bad input leaves no run behind."""
        sent: Any = None
        try:
            while True:
                stage = stages.send(sent)
                self._begin(header)
                sent = self._stage(stage, rng, device)
        except StopIteration as stop:
            return stop.value

    def _load(self, data: Any) -> Any:
        if isinstance(data, str | Path):
            from telos.data.formats import load

            data = load(str(data), kind=self.method.data, accepts=self.method.accepts)
        if hasattr(data, "__len__") and len(data) == 0:
            raise TelosError(f"{getattr(data, 'origin', None) or 'the data'}: nothing to learn from", got="0 items")
        wanted = self.method.data
        if wanted is not None and not isinstance(data, (wanted, *self.method.accepts, Source)):
            raise TelosError(
                f"{type(self.method).__name__} learns from {wanted.__name__}",
                got=type(data).__name__,
                fix=f"load the data with telos.load(..., kind=telos.{wanted.__name__})",
            )
        return data

    def _header(self, data: Any, device: torch.device) -> dict[str, Any]:
        def name(value: Any) -> Any:
            return (
                value
                if isinstance(value, str | int | float | bool | None)
                else str(getattr(value, "origin", "in memory"))
            )

        return {
            "method": class_slug(type(self.method)),
            "options": self.method.options(),
            "data": getattr(data, "origin", None),
            "fingerprint": data.fingerprint() if hasattr(data, "fingerprint") else None,
            "given": {key: name(str(value) if isinstance(value, Path) else value) for key, value in self.given.items()},
            "steps": self.steps,
            "seed": self.seed,
            "micro": self.micro,
            "checkpoint_every": self.checkpoint_every,
            "path": numerical_path(device),
            "requested_device": self.device,
            "version": telos.__version__,
        }

    def _open(self, header: dict[str, Any], resume: bool) -> None:
        if self.out is None:
            return
        if not resume and not parallel.leads():
            parallel.wait()
            return
        if resume:
            before = read_json(self.out / "run.json")
            for key in ("method", "options", "fingerprint", "steps", "seed", "micro"):
                if before[key] != header[key]:
                    raise TelosError(
                        f"{self.out}: the run cannot be resumed, its {key} differ",
                        expected=str(before[key]),
                        got=str(header[key]),
                        fix="resume with what the run was started with",
                    )
            first, now = (run["given"].get("purpose") for run in (before, header))
            if first != now:
                raise TelosError(
                    f"{self.out}: the run cannot be resumed, its purpose differs (another file, or changed since)",
                    expected=str(first),
                    got=str(now),
                    fix="restore the purpose, or start a new run",
                )
            torch.set_num_threads(before["path"]["threads"])
            differs = [k for k, v in before["path"].items() if k != "threads" and v != header["path"].get(k)]
            if differs:
                changed = " and ".join(differs)
                print(f"{self.out}: {changed} changed since; it goes on, but not bit for bit", file=sys.stderr)
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise TelosError(
                f"{self.out} is not empty",
                expected="a new folder",
                fix=f"`telos resume {self.out}` goes on with a run; otherwise choose another --out",
            )
        else:
            with explained(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
            parallel.wait()

    def _recognise(self, spec: Spec, header: dict[str, Any], resume: bool) -> None:
        """Notes fingerprints of records given beside the data (an expert's); on resume they must be the run's own."""
        header["records"] = {key: v.fingerprint() for key, v in spec.given.items() if isinstance(v, Record)}
        if not resume or self.out is None:
            return
        for key, known in read_json(self.out / "run.json").get("records", {}).items():
            if (now := header["records"].get(key)) != known:
                raise TelosError(
                    f"{self.out}: the run cannot be resumed, its {key} records differ", expected=known, got=str(now),
                    fix="resume with what the run was started with",
                )  # fmt: skip

    def _begin(self, header: dict[str, Any]) -> None:
        if self.out is not None and self._writes and not (self.out / "run.json").exists():
            write_json(self.out / "run.json", header)

    def _stage(self, stage: Stage, rng: Rng, device: torch.device) -> Product:
        parallel.wait()
        finished = self.out / "stages" / stage.name if self.out is not None else None
        if finished is not None and finished.is_dir():
            return load_product(finished, device)
        start = self._restore(stage)
        self._cut_metrics(stage.name, start)
        health = Health()
        progress = Progress(
            f"{class_slug(type(self.method))} {stage.name}",
            stage.steps,
            start,
            silent=not (parallel.leads() and together.first()),
        )
        metrics: Mapping[str, Any] = {}
        due = False
        for step in range(start, stage.steps):
            done = step + 1
            try:
                batch = stage.source.next(stage.learner.behaviour, rng.at(stage.name, "source", step))
                metrics = stage.learner.update(batch, rng.at(stage.name, "update", step), self.micro)
            except Exception:
                health.check_state(done, stage.learner.state()[0])
                raise
            if done == 1:
                parallel.agree("the loss of the first step", torch.as_tensor(metrics.get("loss", 0.0)))
            last = done == stage.steps
            wanted = last or (self.evaluate_every and (stage.first + done) % self.evaluate_every == 0)
            evaluate_now = self.evaluate and stage.evaluated and wanted
            if done % LOG_EVERY == 0 or last or evaluate_now:
                numbers = {name: float(value) for name, value in metrics.items()}
                health.check(done, numbers)
                if self.evaluate is not None and evaluate_now:
                    measured = self.evaluate(stage.first + done, stage.learner.product)
                    numbers |= {k: float(v) for k, v in measured.items()}
                self._log(stage.name, done, numbers)
                progress.show(done, numbers)
            due = due or done % self.checkpoint_every == 0
            if due and not last and stage.source.rests():
                due = False
                if self.out is not None:
                    self._checkpoint(stage, done)
        progress.close()
        if self._shards is not None:
            self._shards.gather()
        product = stage.learner.product()
        if finished is not None and self._writes and stage.name != "main":
            product.save(finished)
        return product

    def _log(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        if self.observer is not None:
            self.observer(step, numbers)
        if self.out is not None and self._writes:
            row = {"stage": stage, "step": step, "time": time.time(), **numbers}
            with explained(self.out / "metrics.jsonl"):
                if self._metrics_file is None:
                    self._metrics_file = (self.out / "metrics.jsonl").open("a")
                self._metrics_file.write(json.dumps(row) + "\n")
                self._metrics_file.flush()

    def _close(self) -> None:
        if self._metrics_file is not None:
            with contextlib.suppress(OSError):
                self._metrics_file.close()  # every row was flushed; on a full disk the last one fails again
            self._metrics_file = None
        if self.out is not None and self._writes:
            with contextlib.suppress(OSError):
                self.out.rmdir()  # only a folder in which nothing was written

    def _cut_metrics(self, stage: str, start: int) -> None:
        """Drops what was logged after the checkpoint, and a last line that a kill left half-written."""
        if self.out is None or not self._writes or not (self.out / "metrics.jsonl").is_file():
            return
        kept: list[str] = []
        for line in (self.out / "metrics.jsonl").read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["stage"] != stage or row["step"] <= start:
                kept.append(line)
        self._close()
        write_atomic(self.out / "metrics.jsonl", "".join(line + "\n" for line in kept))

    def _checkpoint(self, stage: Stage, step: int) -> None:
        assert self.out is not None
        folder = self.out / "checkpoints"
        tensors, numbers = stage.learner.state()
        source_tensors, source_numbers = stage.source.state()
        if self._shards is not None:
            tensors = {name: parallel.whole(tensor) for name, tensor in tensors.items()}
        if not self._writes:
            return
        # Tied parameters share memory; safetensors wants each tensor on its own.
        flat = {f"learner/{k}": v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        flat |= {f"source/{k}": v.detach().cpu().contiguous().clone() for k, v in source_tensors.items()}
        with folder_atomic(folder / f"{stage.name}-{step:09d}") as temporary:
            save_file(flat, temporary / "state.safetensors")
            write_json(temporary / "state.json", {"step": step, "learner": numbers, "source": source_numbers})
        for old in folder.iterdir():
            if old.name != f"{stage.name}-{step:09d}":
                shutil.rmtree(old, ignore_errors=True)
        sync_folder(folder)

    def _restore(self, stage: Stage) -> int:
        folder = self.out / "checkpoints" if self.out is not None else None
        if folder is None or not folder.is_dir():
            return 0
        found = sorted(p for p in folder.iterdir() if p.name.startswith(f"{stage.name}-"))
        if not found:
            return 0
        state = read_json(found[-1] / "state.json")
        tensors = load_file(found[-1] / "state.safetensors")

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        stage.learner.load_state(part("learner/"), state["learner"])
        stage.source.load_state(part("source/"), state["source"])
        return state["step"]


def fit_seeds(run: Run, seeds: int, resume: bool) -> list[Any]:
    """`run` with the seeds from its own one on, in one process: the products, in that order.

    Raises:
        TelosError: fewer than one seed, or several processes for one model.
    """
    if seeds < 1:
        raise TelosError("seeds must be positive", got=str(seeds))
    if importlib.import_module("telos.scale.processes").launched() > 1:
        raise TelosError("several seeds are trained by one process", got="several processes", fix="leave out seeds")
    data = run._load(run.data)
    runs = [
        replace(run, data=data, seed=seed, out=None if run.out is None else run.out / f"seed-{seed}")
        for seed in range(run.seed, run.seed + seeds)
    ]
    again = [resume and one.begun() for one in runs]
    return go_all(runs, again)


def go_all(runs: list[Run], resume: list[bool]) -> list[Any]:
    """The products of runs that differ by their seeds alone."""
    works = [partial(run.go, resume=again) for run, again in zip(runs, resume, strict=True)]
    # torch's precision is the process's, so it is set around all of them.
    with together.seeds(len(works)), using(path := runs[0]._numerics(resume[0])):
        if path.update == "compiled" or not together.pays(runs[0].method, resolve_device(runs[0].device)):
            return [work() for work in works]
        return together.run_together(works)


def seed_folders(out: Path) -> list[Path]:
    """The runs that `fit(..., seeds=...)` left in `out`, by seed."""
    found = [file.parent for file in out.glob("seed-*/run.json") if file.parent.name[5:].isdigit()]
    return sorted(found, key=lambda folder: int(folder.name[5:]))


def named(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `fit` was given, with a purpose that is a name, or names with weights, turned into what it names."""
    if given.get("purpose") is None:
        return given
    return {**given, "purpose": purposes().resolve(given["purpose"])}


def purposes() -> Any:
    """telos.purposes by name, as the registry finds methods: the core imports nothing that lies above it."""
    return importlib.import_module("telos.purposes")


def resume(
    out: str | Path,
    *,
    purpose: Any = None,
    evaluate: Callable[[int, Callable[[], Product]], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
) -> Any:
    """Goes on with the run in the folder `out` and returns its product; bit for bit on a CPU.

    A folder of several seeds (`fit(..., seeds=8, out=...)`) goes on with all of them and returns their products.

    Args:
        purpose: needed again where it is a function: code is not imported because a file says so. It must be the
            same (`file.py:function` is compared by the file's hash).
        evaluate, evaluate_every: as for `fit`; a run does not remember them.

    Raises:
        TelosError: not a run, data or a model that cannot be found again or has changed.
    """
    out = Path(out)
    if not (out / "run.json").is_file() and (folders := seed_folders(out)):
        runs = [resumed(folder, purpose, evaluate, evaluate_every) for folder in folders]
        if any(run.method != runs[0].method for run in runs):
            raise TelosError(
                f"{out}: the folders seed-* are not runs of one method with the same options",
                fix="resume each of them by itself",
            )
        return go_all(runs, [True] * len(runs))
    return resumed(out, purpose, evaluate, evaluate_every).go(resume=True)


def resumed(out: Path, purpose: Any, evaluate: Callable[..., Mapping[str, float]] | None, evaluate_every: int) -> Run:
    """The run that a folder was made by, with what it was given."""
    if not (out / "run.json").is_file():
        raise TelosError(f"{out} is not a run", expected="a folder with run.json, as `telos fit --out` writes")
    header = read_json(out / "run.json")
    given = dict(header["given"])
    if purpose is not None:
        given["purpose"] = purpose
    elif given.get("purpose") not in (None, "in memory") and purposes().named_again(given["purpose"]):
        name, _, _ = given["purpose"].partition(" sha256:")
        raise TelosError(
            f"{out}: the run's purpose, {name}, must be named again",
            expected="the same, unchanged",
            fix=f"telos resume {out} --purpose PATH/{Path(name).name}",
        )
    in_memory = [k for k, v in [("data", header["data"]), *given.items()] if v in (None, "in memory", "None")]
    method = method_class(header["method"]).from_options(header["options"])
    if in_memory and not (in_memory == ["data"] and method.data is None):
        raise TelosError(
            f"{out}: '{in_memory[0]}' was made in memory, so only its maker can resume",
            fix="call fit(..., out=..., resume=True) again with the same objects",
        )
    return Run(
        method=method,
        data=header["data"],
        given=given,
        steps=header["steps"],
        seed=header["seed"],
        device=header["requested_device"],
        out=out,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        checkpoint_every=header["checkpoint_every"],
        micro=header["micro"],
    )
