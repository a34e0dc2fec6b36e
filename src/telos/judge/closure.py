"""The code under a result: the modules that a module reaches by import, hashed without comments and docstrings.

Static imports are followed, also those inside functions; so are `use("slug")`, `telos.DPO` and bundled data files that
the code names. Catalogue headers (PAPER, BASELINE) and the CLAIMS of a claims file are left out: no run reads the
former, and what a run needs of the latter is in its key or compared on its own.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from telos.core.errors import TelosError
from telos.core.registry import PACKAGE, entries, public_classes

DECLARATIONS = {"PAPER", "BASELINE", "CLAIMS"}
JUDGES = {"telos.judge.verdict", "telos.judge.plots"}
"""A claims file imports these too, but they judge and draw what arms measured: no arm reads them."""
LOOKUPS = {"use", "method_class"}


def closure_hash(modules: Iterable[str]) -> str:
    """A hash of the code that `modules` reach: equal until code or bundled data changes."""
    result = hashlib.blake2b(digest_size=16)
    for name, file in sorted(closure(modules).items()):
        result.update(f"{name}:{_read(file, file.stat().st_mtime_ns).hash}\n".encode())
    return result.hexdigest()


def closure(modules: Iterable[str]) -> dict[str, Path]:
    """The files that `modules` reach within telos (and within their own packages), by name."""
    waiting = sorted(modules)
    tops = {name.split(".")[0] for name in waiting} | {"telos"}
    for name in waiting:
        if _find(name, tops) is None:
            raise TelosError(f"no module is called {name}", expected="a module of telos, or one on the path")
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        file = _find(name, tops)
        if file is None or name in found or name in JUDGES:
            continue
        found[name] = file
        code = _read(file, file.stat().st_mtime_ns)
        waiting += code.imports
        # A package's own file runs before its modules; telos/__init__.py only looks names up.
        waiting += [parent for i in range(name.count(".")) if (parent := name.rsplit(".", i + 1)[0]) != "telos"]
        found |= {str(path.relative_to(PACKAGE)): path for path in code.data}
    return found


def _find(name: str, tops: set[str]) -> Path | None:
    """The file of a module, or None where it is no module or lies outside."""
    top, _, rest = name.partition(".")
    if top not in tops or name == "telos":
        return None
    if top == "telos":
        path = PACKAGE / rest.replace(".", "/")
        candidates = (path.with_suffix(".py"), path / "__init__.py")
        return next((file for file in candidates if file.is_file()), None)
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@dataclass(frozen=True)
class Code:
    """What one file holds: the hash of its code, and the modules and bundled data files that the code names."""

    hash: str
    imports: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()


@functools.cache
def _read(file: Path, changed: int) -> Code:
    """Reads a file; kept for the process, until its time of change is another."""
    if file.suffix != ".py":
        return Code(hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest())
    tree = _stripped(file)
    imports: list[str] = []
    data: list[Path] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # The name may be a module or something inside one: _find keeps what is there.
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if node.module == "telos":
                imports += [public_classes().get(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "telos":
            imports.append(public_classes().get(node.attr, ""))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            slug = str(node.args[0].value).split(".")[0]
            if called in LOOKUPS and slug in entries():
                imports.append(entries()[slug].module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            data += _data_files().get(node.value.rsplit("/", 1)[-1], [])
    # Unparsed code rather than a dump of the tree: the dump's form changes with the version of Python.
    content = ast.unparse(tree).encode()
    return Code(hashlib.blake2b(content, digest_size=16).hexdigest(), tuple(imports), tuple(data))


@functools.cache
def _data_files() -> dict[str, list[Path]]:
    """Bundled data (weights, tokenisers) by file name; where a folder holds data only, by its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        folder = path.parent
        if folder != PACKAGE and "__pycache__" not in path.parts and path.is_file() and path.suffix != ".py":
            found.setdefault(path.name if list(folder.glob("*.py")) else folder.name, []).append(path)
    return found


def _stripped(file: Path) -> ast.Module:
    """The syntax tree without declarations and docstrings (bare strings anywhere, also those below fields)."""
    tree = ast.parse(file.read_bytes(), str(file))
    tree.body = [node for node in tree.body if not _is_declaration(node)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_bare_string(s)]  # type: ignore[attr-defined]
    return tree


def _is_declaration(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id in DECLARATIONS for target in targets)


def _is_bare_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
