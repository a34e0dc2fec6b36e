"""Help without torch: what it says is what the method's class would say."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from telos.cli import fit
from telos.cli.outline import NOT_UNDERSTOOD, options, outline
from telos.core.registry import entries, entry, method_class

NAMES = [name for slug, found in entries().items() for name in (slug, *(f"{slug}.{v}" for v in found.classes[1:]))]


@pytest.fixture
def text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """The help of a method as a class tells it."""
    monkeypatch.setenv("COLUMNS", "100")

    def render(cls: type, name: str) -> str:
        with pytest.raises(SystemExit) as stop:
            fit.parse(cls, name, entry(name.partition(".")[0]), ["--help"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    return render


@pytest.mark.parametrize("name", NAMES)
def test_the_outline_of_every_method_says_what_its_class_says(name: str, text):
    outlined, cls = outline(name), method_class(name)
    assert outlined is not None, f"{name} says its options in a way that telos.cli.outline does not understand"
    assert outlined is not cls and outlined.__name__ == cls.__name__
    assert text(outlined, name) == text(cls, name)


HELP = "from telos.cli import main; assert main(['fit', 'dpo', '--help']) == 0"
EVERY = f"from telos.cli.outline import outline; assert all(map(outline, {NAMES}))"
LOADED = "import sys; sys.exit(', '.join({'torch', 'numpy', 'scipy', 'transformers'} & set(sys.modules)) or None)"


@pytest.mark.parametrize(("code", "said"), [(HELP, "--beta FLOAT"), (EVERY, "")], ids=["the command", "every method"])
def test_help_loads_no_torch(code: str, said: str):
    done = subprocess.run([sys.executable, "-c", f"{code}; {LOADED}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


@pytest.mark.parametrize(
    "argv", [["--beta", "x", "--help"], ["--data", "-h"], ["-h", "--nonsense"], ["--loss=x", "-h"]]
)
def test_what_stands_beside_the_flag_is_judged_alike(argv: list[str], capsys, monkeypatch: pytest.MonkeyPatch):
    def told() -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stop:
            fit.run(["dpo", *argv])
        return stop.value.code, *capsys.readouterr()

    short = told()
    monkeypatch.setattr(fit, "outline", lambda name: None)
    assert short == told()


FIELD = 'beta: float = 0.1\n    """Text."""'
SOURCE = '@dataclass(frozen=True)\nclass Some(Method):\n    """Some."""\n    {}'


@pytest.mark.parametrize(
    "source",
    [
        SOURCE.format("beta: float = 0.1"),
        SOURCE.format("beta: float = 0.1  # Text."),
        SOURCE.format('beta: float\n    """Text."""'),
        SOURCE.format('beta: float = min([0.1])\n    """Text."""'),
        SOURCE.format('beta: float = split(0.1)\n    """Text."""'),
        SOURCE.format('beta: Unheard = 0.1\n    """Text."""'),
        SOURCE.format('beta: float = 0.1\n    """Text.\n\n    More.\n    """'),
        SOURCE.format(FIELD).replace("frozen=True", "frozen=True, kw_only=True"),
        SOURCE.format(FIELD).replace('"""Some."""', "pass"),
        SOURCE.format(FIELD).replace("Method", "Unheard"),
    ],
)
def test_what_is_not_understood_is_left_to_the_class(source: str):
    understood = ast.parse(SOURCE.format(FIELD)).body[0]
    assert isinstance(understood, ast.ClassDef)
    assert options(understood, "telos.methods.preferences.dpo")().beta == 0.1
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    with pytest.raises(NOT_UNDERSTOOD):
        options(node, "telos.methods.preferences.dpo")
