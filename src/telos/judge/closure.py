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
from pathlib import Path

from telos.core.errors import TelosError
from telos.core.registry import PACKAGE, entries, public_classes

DECLARATIONS = {"PAPER", "BASELINE", "CLAIMS"}
LOOKUPS = {"use", "method_class"}


def closure_hash(modules: Iterable[str]) -> str:
    """A hash of the code that `modules` reach: equal until code or bundled data changes."""
    result = hashlib.blake2b(digest_size=16)
    for name, file in sorted(closure(frozenset(modules)).items()):
        result.update(f"{name}:{_file_hash(file)}\n".encode())
    return result.hexdigest()


@functools.cache
def closure(modules: frozenset[str]) -> dict[str, Path]:
    """The files that `modules` reach within telos (and within their own packages), by name; kept for the process."""
    tops = {name.split(".")[0] for name in modules} | {"telos"}
    found: dict[str, Path] = {}
    waiting = sorted(modules)
    for name in waiting:
        if _find(name, tops) is None:
            raise TelosError(f"no module is called {name}", expected="a module of telos, or one on the path")
    while waiting:
        name = waiting.pop()
        file = _find(name, tops)
        if file is None or name in found:
            continue
        found[name] = file
        imported, data = _reads(file)
        waiting += imported
        # A package's own file runs before its modules; telos/__init__.py only looks names up.
        waiting += [parent for i in range(name.count(".")) if (parent := name.rsplit(".", i + 1)[0]) != "telos"]
        found |= {str(path.relative_to(PACKAGE)): path for path in data}
    return found


def clear() -> None:
    """Forgets what was read, so that changed files are seen."""
    closure.cache_clear()
    _reads.cache_clear()
    _file_hash.cache_clear()
    _data_files.cache_clear()


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


@functools.cache
def _reads(file: Path) -> tuple[list[str], list[Path]]:
    """The modules and the bundled data files that a file's code names."""
    modules: list[str] = []
    data: list[Path] = []
    for node in ast.walk(_code(file)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # The name may be a module or something inside one: _find keeps what is there.
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if node.module == "telos":
                modules += [public_classes().get(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "telos":
            modules.append(public_classes().get(node.attr, ""))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            slug = str(node.args[0].value).split(".")[0]
            if called in LOOKUPS and slug in entries():
                modules.append(entries()[slug].module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            data += _data_files().get(node.value.rsplit("/", 1)[-1], [])
    return modules, data


@functools.cache
def _data_files() -> dict[str, list[Path]]:
    """Bundled data (weights, tokenisers) by file name and, where a folder holds data only, by the folder's name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        folder = path.parent
        if folder != PACKAGE and "__pycache__" not in path.parts and path.is_file() and path.suffix != ".py":
            found.setdefault(path.name, []).append(path)
            if not list(folder.glob("*.py")):
                found.setdefault(folder.name, []).append(path)
    return found


def _code(file: Path) -> ast.Module:
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


@functools.cache
def _file_hash(file: Path) -> str:
    # Unparsed code rather than a dump of the tree: the dump's form changes with the version of Python.
    content = ast.unparse(_code(file)).encode() if file.suffix == ".py" else file.read_bytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
