"""Imports point down only: ops < nets, data < core < lm, purposes < judge, worlds, methods, scale < claims < cli, site.

Read from the source of every file, imports inside functions and under TYPE_CHECKING included, and modules that are
imported by name (`importlib.import_module("telos...")`).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from telos.core.registry import PACKAGE

LEVELS = (
    {"ops"},
    {"nets", "data"},
    {"core"},
    {"lm", "purposes"},
    {"judge", "worlds", "methods", "scale"},
    {"claims"},
    {"cli", "site", "catalogue", "__main__"},
)

LEAVES = {"telos", "telos.core.errors", "telos.core.files", "telos.core.numerics", "telos.core.rng"}
"""Utilities that know nothing of the contract (and the package's own name, for its version): open to every layer."""

EXCEPTIONS = {
    ("nets/policies.py", "telos.core.products"): "a policy network is a Product: it implements the contract's class",
    ("nets/goal_policies.py", "telos.core.products"): "as above",
    ("nets/candidates.py", "telos.core.products"): "as above",
    ("nets/q_policies.py", "telos.core.products"): "as above",
    ("nets/squashed.py", "telos.core.products"): "as above",
    ("nets/response_policies.py", "telos.core.products"): "as above",
    ("data/environments.py", "telos.core.products"): "under TYPE_CHECKING: the policy whose steps are recorded",
    ("data/schemes.py", "telos.core.products"): "as above",
    ("data/rl_formats.py", "telos.core.products"): "inside load_gym: the saved policy that records",
    ("core/fit.py", "telos.purposes"): "by name, inside fit: a purpose that is given as text",
    ("core/fit.py", "telos.scale.processes"): "by name, inside fit: processes that were launched together",
    ("core/fit.py", "telos.scale.sharding"): "by name, inside fit: processes that hold one model together",
    ("__init__.py", "telos.core.fit"): "the package's names, all of them lazy",
    ("__init__.py", "telos.core.online"): "as above",
    ("__init__.py", "telos.core.products"): "as above",
    ("__init__.py", "telos.core.registry"): "as above",
    ("__init__.py", "telos.data.formats"): "as above",
    ("__init__.py", "telos.data.measures"): "as above",
    ("__init__.py", "telos.judge.evaluate"): "as above",
    ("__init__.py", "telos.judge.compare"): "as above",
    ("__init__.py", "telos.judge.advise"): "as above",
    ("__init__.py", "telos.judge.study"): "as above",
}
"""Imports that point up, each with its reason; one that is not needed any more fails the test."""


def level(name: str) -> int:
    """The level of `telos.<part>...`; the package's __init__ is below everything."""
    part = name.split(".")[1] if "." in name else "__init__"
    return next((i for i, parts in enumerate(LEVELS) if part in parts), -1)


def module(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["telos", *(part for part in parts if part != "__init__")])


def imports(file: Path) -> set[str]:
    """The telos modules that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in submodules if is_module(name)}
            found |= inner if len(inner) == len(submodules) else {str(node.module), *inner}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                found.add(str(argument.value))
    return {name for name in found if name.split(".")[0] == "telos"}


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return name.startswith("telos.") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_a_level():
    unknown = {module(file).split(".")[1] for file in FILES if level(module(file)) < 0 and module(file) != "telos"}
    assert not unknown, f"{unknown}: give them a level in tests/test_layers.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file: Path):
    own, name = level(module(file)), str(file.relative_to(PACKAGE))
    upward = {other for other in imports(file) if level(other) > own and other not in LEAVES}
    upward = {other for other in upward if (name, other) not in EXCEPTIONS}
    assert not upward, f"{name} imports from above: {sorted(upward)}"


def test_no_exception_is_left_over():
    stale = {(name, other) for name, other in EXCEPTIONS if other not in imports(PACKAGE / name)}
    assert not stale


def test_a_file_in_a_layer_imports_no_sibling_layer():
    # Of the parts that share a level, these pairs stay apart as well.
    apart = {("nets", "data"): {"telos.data.records"}, ("judge", "methods"): set(), ("judge", "worlds"): set()}
    for file in FILES:
        part = str(file.relative_to(PACKAGE)).split("/")[0]
        for other in imports(file):
            allowed = apart.get((part, other.split(".")[1] if "." in other else ""))
            assert allowed is None or other in allowed, f"{file}: {other}"


def test_no_method_imports_a_method():
    for file in sorted((PACKAGE / "methods").glob("*/*.py")):
        # `<slug>_variants.py` holds more of the same paper.
        own = module(file).removesuffix("_variants")
        methods = {name for name in imports(file) if name.startswith("telos.methods.")}
        others = {name for name in methods if name.removesuffix("_variants") != own}
        assert not others, f"{file.name} imports {others}: hold it as a field, use(...)"


def test_no_library_of_an_extra_is_imported_at_the_top():
    extras = {"transformers", "datasets", "peft", "gymnasium", "minari", "h5py", "matplotlib", "jaxtyping", "pyarrow"}
    for file in FILES:
        if file.name == "pretrain_tiny.py":  # the script that made the bundled model; nothing imports it
            continue
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            used = {name.split(".")[0] for name in names} & extras
            assert not used, f"{file}: {used} at import; import it where it is used"
