"""Programs: pure functions of tensors, compiled by a process of their own, so that this one does not grow.

They are kept in the cache folder by what they compute: further seeds and resumed runs find them there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from telos.core import compiler
from telos.core.errors import TelosError
from telos.core.files import write_atomic
from telos.core.numerics import cache, processor
from telos.core.progress import say

Program = Callable[[list[Tensor]], Sequence[Tensor]]


class Uncompiled(Exception):
    """Why there is no program."""


def program(
    code: str,
    tensors: Sequence[Tensor],
    *,
    step: Mapping[str, Any] | None = None,
    varying: Sequence[Mapping[int, str]] = (),
) -> Program:
    """The program of a source, from the cache folder or made now.

    Args:
        code: source of `forward(self, *tensors)`. tensors: as it is called with; what they hold is not read.
        step: options of `telos.core.compiler.Step`, if gradients are what `code` gives.
        varying: names of the sizes of each tensor, by dimension, that may be any from 2 on: those of one name are
            equal, those of different names are not. It is made to be fast for the sizes of `tensors`.

    Raises:
        Uncompiled: nothing compiles here.
    """
    inputs = [[*map(list, (t.shape, t.stride())), str(t.dtype).removeprefix("torch.")] for t in tensors]
    names = [[sizes.get(place) for place in range(tensor.dim())] for tensor, sizes in zip(tensors, varying)]
    about = {"step": step, "inputs": inputs, "varying": names, "threads": torch.get_num_threads()}
    identity = [code, about, str(torch.__version__), processor(), Path(compiler.__file__).read_text()]
    name = hashlib.blake2b(json.dumps(identity).encode(), digest_size=12).hexdigest()
    file = cache("compiled") / f"{name}.pt2"
    try:
        if not file.is_file():
            say("telos compiles for this machine, once: some 20 seconds (TELOS_NUMERICS=plain: never)")
            write_atomic(file, lambda scratch: compile_to(scratch, code, about))
        return _loaded(str(file))
    except (TelosError, RuntimeError, AttributeError) as error:
        raise Uncompiled(str(error)) from error


@functools.cache
def _loaded(file: str) -> Program:
    # torch's public loader imports the compiler, which is 70 MB.
    return cast(Any, torch._C)._aoti.AOTIModelPackageLoader(file, "model", False, 1, -1).run


def compile_to(file: Path, code: str, about: Mapping[str, Any]) -> None:
    """
    Raises:
        RuntimeError: nothing compiles here.
    """
    with tempfile.TemporaryDirectory(prefix="telos-") as scratch:
        folder = Path(scratch)
        (folder / "graph.py").write_text(code)
        (folder / "about.json").write_text(json.dumps(about))
        variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        command = [sys.executable, compiler.__file__, scratch]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        shutil.move(folder / "program.pt2", file)
