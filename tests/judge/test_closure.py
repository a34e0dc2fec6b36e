"""The code under a result: what changes its hash and what does not."""

import subprocess
import sys

import pytest
from toys import TOY, write_toy

from telos.core.errors import TelosError
from telos.core.registry import PACKAGE
from telos.judge.closure import closure, closure_hash


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""A toy."""', '"""Another."""', True),
        ('    """An arm."""\n', "", True),
        ("    time.sleep(wait)", "    # waits\n    time.sleep(wait)  # here", True),
        ("    time.sleep(wait)", "\n\n    time.sleep( wait )", True),
        ('statement="The new one', 'statement="Surely the new one', True),
        ("METRICS = {", 'PAPER = {"title": "A"}\nMETRICS = {', True),
        ("rng.gauss(0, 0.1)", "rng.gauss(0, 0.2)", False),
        ("    time.sleep(wait)", "    time.sleep(wait + 0)", False),
    ],
)
def test_code_changes_the_hash_and_words_do_not(monkeypatch, tmp_path, before, after, same):
    toy = write_toy(monkeypatch, tmp_path)
    first = closure_hash([toy])
    assert before in TOY
    write_toy(monkeypatch, tmp_path, TOY.replace(before, after))
    assert (closure_hash([toy]) == first) is same


def test_field_docstrings_do_not_count(monkeypatch, tmp_path):
    field = "class Options:\n    rate: float = 0.1\n"
    toy = write_toy(monkeypatch, tmp_path, TOY + field)
    first = closure_hash([toy])
    write_toy(monkeypatch, tmp_path, TOY + field + '    """The rate, from 0 to 1."""\n')
    assert closure_hash([toy]) == first


def test_imports_are_followed_also_inside_functions(monkeypatch, tmp_path):
    inside = "\ndef late():\n    from toys import helper\n    return helper.f()\n"
    toy = write_toy(monkeypatch, tmp_path, TOY + inside)
    (tmp_path / "toys" / "helper.py").write_text("def f():\n    return 1\n")
    first = closure_hash([toy])
    assert {"toys", "toys.toy", "toys.helper", "telos.judge.claim", "telos.core.fit"} <= closure([toy]).keys()
    (tmp_path / "toys" / "helper.py").write_text("def f():\n    return 2\n")
    assert closure_hash([toy]) != first


def test_what_judges_and_draws_is_not_under_a_result(monkeypatch, tmp_path):
    found = closure([write_toy(monkeypatch, tmp_path, TOY + "from telos.judge.plots import plane\n")])
    assert "telos.judge.claim" in found
    assert not {"telos.judge.verdict", "telos.judge.plots", "telos.judge.stats", "telos"} & found.keys()


@pytest.mark.parametrize(
    "code",
    ['from telos.core.registry import use\nM = use("dpo")', "import telos\nM = telos.DPO", "from telos import DPO"],
)
def test_methods_reached_by_name_are_followed(monkeypatch, tmp_path, code):
    found = closure([write_toy(monkeypatch, tmp_path, code)])
    assert "telos.methods.preferences.dpo" in found


def test_bundled_data_counts():
    found = closure(["telos.lm.model"])
    assert found["lm/bundled/tiny/model.safetensors"] == PACKAGE / "lm" / "bundled" / "tiny" / "model.safetensors"
    assert not any(name.startswith("lm/bundled/tiny") for name in closure(["telos.core.rng"]))


def test_unknown_modules_are_refused():
    with pytest.raises(TelosError, match=r"telos\.methods\.nothing"):
        closure_hash(["telos.methods.nothing"])


def test_neither_closure_nor_results_load_torch_or_numpy():
    code = (
        "import sys, telos.judge.closure as c, telos.judge.results as r; c.closure_hash(['telos.core.fit']);"
        "r.read_results(); assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
