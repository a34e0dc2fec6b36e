"""The numerical path: by which kernels a thing is computed whose result is the same within rounding.

`PLAIN` is torch's own, and what claims use. Elsewhere the path is chosen once a machine, by a measurement of a second,
and kept in the cache folder, so that two runs there have the same bits; a run records its path and is resumed with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from telos.core.errors import TelosError
from telos.core.files import explained, read_json, write_json

Preset = Literal["auto", "plain", "compiled", "medium"]
"""auto: the machine's fastest in float32; plain: torch's own; compiled: gradient steps are compiled in short runs
too, and so is sampling from language models; medium: as auto, and float32 matrix products may be made from bfloat16
where the processor can, which is faster there and coarser (products to about 3 digits)."""
LONG = 50_000
"""Least steps of a run for which compilation (some 20 seconds for each kind of step) pays."""


@dataclass(frozen=True)
class Numerics:
    """One choice for each thing that can be computed in several ways.

    Args:
        linear: "plain" or "fused": layers of small networks, see telos.ops.linear.
        decoder: "plain", "fused" or "compiled": sampling from language models, see telos.lm.decoder.
        forward: "plain" or "packed": log-probs of language models, see telos.lm.packed.
        precision: "highest" or "medium": of float32 matrix products, see `torch.set_float32_matmul_precision`.
        update: "plain" or "compiled": gradient steps, see telos.core.compiled; "auto": see `settled`.
    """

    linear: str = "plain"
    decoder: str = "plain"
    forward: str = "plain"
    precision: str = "highest"
    update: str = "plain"

    def settled(self, steps: int, device: torch.device) -> Numerics:
        """What holds for a run of so many steps."""
        if self.update != "auto":
            return self
        # Where the fused layers are faster, the compiler, which calls torch's products, has less to give.
        pays = steps >= LONG and device.type == "cpu" and self.linear == "plain"
        return dataclasses.replace(self, update="compiled" if pays else "plain")


PLAIN = Numerics()
_active: ContextVar[Numerics | None] = ContextVar("numerics", default=None)


def current() -> Numerics:
    """The path in force: that of the innermost `using`, else the process's (`$TELOS_NUMERICS`, a preset; "auto")."""
    return _active.get() or preset(os.environ.get("TELOS_NUMERICS", "auto"))


@contextlib.contextmanager
def using(numerics: Numerics) -> Iterator[None]:
    """Computes by this path inside the block."""
    before = torch.get_float32_matmul_precision()
    token = _active.set(numerics)
    torch.set_float32_matmul_precision(numerics.precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        _active.reset(token)


@functools.cache
def preset(name: str) -> Numerics:
    """The path that a preset stands for on this machine.

    Raises:
        TelosError: no such preset.
    """
    presets: Mapping[str, Callable[[], Numerics]] = {
        "auto": lambda: Numerics(_fastest_linear(), "fused", "packed", update="auto"),
        "plain": lambda: PLAIN,
        "compiled": lambda: Numerics("plain", "compiled", "packed", update="compiled"),
        "medium": lambda: Numerics(_fastest_linear(), "fused", "packed", "medium", "auto"),
    }
    if name not in presets:
        raise TelosError("no such numerical path", expected=", ".join(get_args(Preset)), got=name)
    return presets[name]()


def cache(name: str) -> Path:
    """A folder in `$TELOS_CACHE`, or in ~/.cache/telos."""
    named = os.environ.get("TELOS_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "telos") / name


def _fastest_linear() -> str:
    """The machine's choice: its first measurement is kept, also where several processes make one at once."""
    from telos.ops.linear import measured

    identity = [str(torch.__version__), processor(), torch.get_num_threads()]
    name = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()
    file = cache("numerics") / f"linear-{name}.json"
    if file.is_file():
        return str(read_json(file)["chosen"])
    found = measured()
    try:
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
                whole = write_json(Path(scratch) / file.name, {"identity": identity, **found})
                with contextlib.suppress(FileExistsError):
                    os.link(whole, file)
    except TelosError:  # a folder that cannot be written: each process measures for itself
        return str(found["chosen"])
    return str(read_json(file)["chosen"])


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line] if (
        info.is_file()
    ) else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()
