"""What a reader of a method reads: its file and the telos files that it stands on. Static: nothing is imported.

Counted are the method's file and, through imports at the top of files, everything in ops, nets, lm and worlds
that it reaches, with data/records.py and core/method.py. Not counted is the plumbing that a reader can take on trust,
like torch: the rest of core and data (files, loop, registry, formats), purposes (how one is named and asked), fast
ways to compute what a plain way beside them computes too, and empty packages. A line of code is a line that holds
something other than comments, docstrings and the catalogue header (PAPER, BASELINE).
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

from telos.core.registry import PACKAGE, Entry, entries

READ = ("ops/", "nets/", "lm/", "worlds/", "data/records.py", "core/method.py")
FAST = ("ops/linear.py", "lm/decoder.py", "lm/growth.py", "lm/packed.py")
MOST_OWN, MOST_LINES, MOST_FILES = 350, 2000, 10


@dataclass(frozen=True)
class Budget:
    """Lines of code of a method's own file, and of all files to read (by path under the package)."""

    slug: str
    own: int
    files: dict[str, int]

    @property
    def lines(self) -> int:
        return sum(self.files.values())


def budget(entry: Entry) -> Budget:
    """The reading budget of one method."""
    first = PACKAGE.joinpath(*entry.module.split(".")[1:]).with_suffix(".py")
    found: dict[str, int] = {}
    waiting = [first]
    while waiting:
        file = waiting.pop()
        name = str(file.relative_to(PACKAGE))
        lines = code_lines(file)
        if name in found or not lines or name in FAST or not (file == first or name.startswith(READ)):
            continue
        found[name] = lines
        waiting += imported_files(file)
    return Budget(entry.slug, found[str(first.relative_to(PACKAGE))], found)


@functools.cache
def code_lines(file: Path) -> int:
    """Lines that hold code."""
    text = file.read_text()
    held: set[int] = set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not is_text(s) and not is_header(s)]  # type: ignore[attr-defined]
    blank = {i for i, line in enumerate(text.splitlines(), 1) if not line.strip() or line.lstrip().startswith("#")}
    for node in tree.body:
        for inner in ast.walk(node):
            if isinstance(inner, ast.stmt | ast.expr | ast.arg | ast.alias | ast.keyword | ast.excepthandler):
                held.add(inner.lineno)
                if not isinstance(getattr(inner, "body", None), list):
                    held |= set(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    return len(held - blank)


def is_text(node: ast.stmt) -> bool:
    """A docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_header(node: ast.stmt) -> bool:
    """PAPER or BASELINE."""
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("PAPER", "BASELINE")


@functools.cache
def imported_files(file: Path) -> list[Path]:
    """The telos files that the top of `file` imports."""
    found: list[Path] = []
    for node in ast.parse(file.read_text()).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("telos."):
                path = PACKAGE.joinpath(*name.split(".")[1:])
                found += [f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()]
    return found


def budget_lines(seconds: dict[str, float]) -> list[str]:
    """A line for each method: its size, what there is to read in all, and how long its contract tests took."""
    lines = [f"{'method':24}{'own lines':>10}{'files':>8}{'lines':>8}{'seconds':>9}"]
    for slug, entry in entries().items():
        b = budget(entry)
        time = sum(value for name, value in seconds.items() if name.split(".")[0] == slug)
        note = "  over budget" if b.lines > MOST_LINES or len(b.files) > MOST_FILES or b.own > MOST_OWN else ""
        lines.append(f"{slug:24}{b.own:>10}{len(b.files):>8}{b.lines:>8}{time:>9.1f}{note}")
    return [*lines, f"at most {MOST_OWN} own lines, {MOST_FILES} files, {MOST_LINES} lines; 4 seconds a method"]
