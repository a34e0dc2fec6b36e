"""The command line, as a user calls it: in this process, and as a process of its own where that matters."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from telos import catalogue
from telos.cli import main
from telos.cli.fit import RunOptions
from telos.cli.show import show_result
from telos.core.products import load_product
from telos.core.registry import PACKAGE, entries, method_class
from telos.data.formats import save_npz
from telos.worlds import lineworld

ROOT = PACKAGE.parent.parent
PLANNED = next((row["slug"] for row in catalogue.papers({}) if not row["available"]), "")
"""A paper that has no method yet; empty once all have one."""
KEYS = {
    "slug", "family", "method", "title", "arxiv", "year", "url", "purpose", "product", "data", "summary", "claim",
    "reference", "baseline", "available", "verdict", "verdicts",
}  # fmt: skip

Telos = Callable[..., tuple[int, str, str]]


@pytest.fixture
def telos(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Telos:
    """Runs a command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "telos", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]


def transitions(folder: Path) -> Path:
    return save_npz(lineworld.dataset(200), folder / "line.npz")


def pairs(folder: Path, count: int = 12) -> Path:
    rows = [{"prompt": f"topic{i % 4}", "chosen": " good0 good1", "rejected": " bad0 bad1"} for i in range(count)]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# The catalogue.


def test_papers_loads_neither_torch_nor_numpy():
    code = (
        "import sys; from telos.cli import main; assert main(['papers']) == main(['show', 'dpo']) == 0; "
        "sys.exit(', '.join({'torch', 'numpy', 'scipy', 'transformers', 'tyro'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_papers_as_json_has_every_paper_with_all_keys(telos: Telos):
    code, out, err = telos("papers", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert len(rows) == len({row["slug"] for row in rows}) >= 68
    assert all(set(row) == KEYS for row in rows)
    assert all(row["claim"] and row["arxiv"] and row["purpose"] and not row["baseline"] for row in rows)
    begun = {slug for slug, entry in entries().items() if not entry.baseline}
    assert {row["slug"] for row in rows if row["available"]} == begun
    assert {row["slug"] for row in rows if row["verdict"] == "planned"} == {row["slug"] for row in rows} - begun


def test_baselines_stand_apart(telos: Telos):
    rows = json.loads(telos("papers", "--baselines", "--json")[1])
    assert {"bc", "td3_bc", "sft", "rloo"} <= {row["slug"] for row in rows}
    assert all(set(row) == KEYS and row["baseline"] and row["verdict"] is None for row in rows)
    papers = json.loads(telos("papers", "--json")[1])
    assert not {row["slug"] for row in rows} & {row["slug"] for row in papers}


@pytest.mark.parametrize("columns", [80, 160])
def test_papers_fits_the_terminal_and_cuts_no_claim(telos: Telos, monkeypatch: pytest.MonkeyPatch, columns: int):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = telos("papers", "--family", "offline_rl")
    lines = out.splitlines()
    rows = [row for row in catalogue.papers() if row["family"] == "offline_rl"]
    assert code == 0 and max(map(len, lines)) <= columns and len(rows) == 5
    for row in rows:
        assert any(all(part in line for part in (row["slug"], row["arxiv"], str(row["year"]))) for line in lines)
        assert all(word in out for word in row["claim"].split())


def test_papers_can_be_searched(telos: Telos):
    found = json.loads(telos("papers", "--search", "NASH preference", "--json")[1])
    assert "nash_md" in [row["slug"] for row in found] and len(found) < 20
    assert telos("papers", "--search", "no such words", "--json")[1] == "[]\n"
    assert "nothing matches" in telos("papers", "--search", "no such words")[1]


def test_verdicts_come_from_results():
    result = {"verdict": "confirmed", "stale": False}
    results = {
        ("dpo", "laptop"): result,
        ("dpo", "standard"): {"verdict": "refuted", "stale": False},
        ("prdc", "laptop"): {**result, "stale": True},
    }
    rows = {row["slug"]: row for row in catalogue.papers(results)}
    assert rows["dpo"]["verdict"] == "confirmed"
    assert rows["dpo"]["verdicts"] == {"laptop": "confirmed", "standard": "refuted"}
    assert rows["prdc"]["verdict"] == "stale"
    assert {row["verdict"] for row in catalogue.papers({}) if row["available"]} == {"no verdict"}


def test_show_has_claim_options_and_usage(telos: Telos):
    code, out, _ = telos("show", "dpo")
    assert code == 0
    for text in ("2305.18290", "Claim", "Figure 2", "--beta", "Paper: 0.1 (HH)", "Options of DPORanking", "telos fit"):
        assert text in out, text
    page = json.loads(telos("show", "dpo", "--json")[1])
    assert set(page) >= KEYS | {"paper_claim", "equations", "deviations", "traps", "usage", "at_scale", "results"}
    assert [option["name"] for option in page["options"]["DPO"]][:2] == ["beta", "loss"]


def test_show_has_the_measured_result(capsys: pytest.CaptureFixture[str]):
    interval = {"estimate": 1.25, "low": 0.5, "high": 2.0, "level": 0.95}
    parts = [
        {"text": "gold: new > old", "status": "confirmed", "interval": interval, "values": [1.0] * 5, "seeds": 5},
        {"text": "exact holds", "status": "refuted", "interval": None, "values": [1.0, 0.0], "seeds": 2},
    ]
    result = {
        "verdict": "refuted", "stale": False, "parts": parts, "seeds": [0, 1, 2, 3, 4], "wall_seconds": 61.4,
        "machine": {"cpu": "A CPU"}, "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    show_result("laptop", result, Console(width=100))
    show_result("standard", {**result, "stale": True}, Console(width=100))
    out = capsys.readouterr().out
    for text in ("refuted  laptop", "gold: new > old", "1.25 [0.5, 2]", "1 of 2 seeds", "5 seeds, 61 s on A CPU"):
        assert text in out, text
    assert "2026-01-02" in out and "stale  standard (was refuted" in out


@pytest.mark.skipif(not PLANNED, reason="every paper has a method")
def test_a_planned_paper_is_shown_and_cannot_be_run(telos: Telos):
    code, out, _ = telos("show", PLANNED)
    assert code == 0 and "planned" in out and catalogue.find(PLANNED)["arxiv"] in out
    for verb in ("fit", "check"):
        code, _, err = telos(verb, PLANNED)
        assert code == 2 and "planned" in err


@pytest.mark.parametrize("slug", entries())
def test_hyperparameters_read_from_the_source_are_those_of_the_class(slug: str):
    for name, fields in catalogue.hyperparameters(entries()[slug]).items():
        cls = method_class(slug if name == entries()[slug].classes[0] else f"{slug}.{name}")
        names = [field.name for field in dataclasses.fields(cls)]
        assert [field["name"] for field in fields] == names
        assert all(field["doc"] for field in fields), name
        # On one command line with the run's options.
        assert not set(names) & {field.name for field in dataclasses.fields(RunOptions)}


# Errors and exit codes.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("paper", "did you mean papers"),
        ("papers --familly x", "did you mean --family"),
        ("papers --family nothing", "offline_rl"),
        ("papers extra", "unknown argument 'extra'"),
        ("show dpp", "did you mean"),
        ("show", "SLUG"),
        ("check nothing_like_it", "no paper or method"),
        ("check dpo --jobs 0", "not a positive number"),
        ("check dpo --scale huge", "laptop"),
        ("fit dpoo", "did you mean dpo"),
        ("fit dpo.nothing", "DPORanking"),
        ("fit --data x", "METHOD"),
        ("fit bc --steps 5", "--data is missing"),
        ("fit bc --data missing.npz --steps 5", "missing.npz"),
        ("fit bc --data line.npz", "--steps"),
        ("fit bc --data line.npz --steps 5 --device nothing", "device 'nothing'"),
        ("fit bc --data line.npz --steps 5 --hiden 3", "--hidden"),
        ("fit bc --data line.npz --steps 5 --learning-rate fast", "could not convert"),
        ("fit bc --data line.npz --steps 5 --kind other", "gaussian"),
        ("fit bc --data line.npz --steps 5 --evaluate-env Nothing-v0", "Nothing-v0"),
        ("fit bc --data line.npz --steps 5 --checkpoint-every 0", "must be positive"),
        ("fit bc --config missing.json", "missing.json"),
        ("fit sft --data line.npz --model telos:tiny --steps 5", "transitions"),
        ("resume nothing", "not a run"),
        ("eval nothing --env Pendulum-v1", "not a product"),
        ("new Bad-Slug", "small letters"),
        ("new dpo", "has a method already"),
        ("new nothing_known", "--family"),
        ("new nothing_known --family nothing", "offline_rl"),
    ],
)
def test_what_the_user_can_put_right_is_one_message_and_exits_with_2(
    telos: Telos, tmp_path: Path, line: str, message: str
):
    transitions(tmp_path)
    code, out, err = telos(*line.split())
    assert (code, out) == (2, "")
    assert message in " ".join(err.split()) and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["line.npz"]


def test_help_and_version(telos: Telos):
    from telos import __version__

    assert telos("--version") == (0, f"telos {__version__}\n", "")
    code, out, _ = telos()
    assert code == 0 and all(verb in out for verb in ("papers", "show", "check", "fit", "resume", "eval", "new"))
    for verb in ("papers", "show", "check", "resume", "eval", "new", "fit"):
        code, out, _ = telos(verb, "--help")
        assert code == 0 and f"usage: telos {verb}" in out
    assert "dpo.dporanking" in out


def test_an_interrupt_is_130_and_a_bug_keeps_its_traceback(telos: Telos, monkeypatch: pytest.MonkeyPatch):
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("telos.cli.dispatch", interrupted)
    assert telos("papers")[0] == 130

    def broken(argv: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("telos.cli.dispatch", broken)
    with pytest.raises(ZeroDivisionError):
        telos("papers")


def test_a_closed_pipe_is_quiet():
    line = f"{sys.executable} -m telos papers --json | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[\n", "")
    assert process("papers", "--family", "nothing").returncode == 2


# Training.


def test_fit_and_eval_of_a_policy(telos: Telos, tmp_path: Path):
    pytest.importorskip("gymnasium")
    data = "gym:Pendulum-v1?steps=220"
    command = ["fit", "bc", "--data", data, "--steps", "20", "--hidden", "8", "--seed", "3", "--device", "cpu"]
    code, out, err = telos(*command, "--evaluate-env", "Pendulum-v1", "--evaluate-episodes", "2")
    assert code == 0, err
    assert "runs/bc-1/product" in out and "loss" in out and "return" in out
    header = json.loads((tmp_path / "runs/bc-1/run.json").read_text())
    assert (header["method"], header["options"]["hidden"], header["seed"]) == ("bc", [8], 3)
    values = json.loads(telos("eval", "runs/bc-1", "--env", "Pendulum-v1", "--episodes", "3", "--json")[1])
    asked = ("eval", "runs/bc-1", "--env", "Pendulum-v1", "--episodes", "3", "--json", "--processes")
    assert json.loads(telos(*asked)[1])["returns"] == pytest.approx(values["returns"], rel=1e-6)
    assert values["episodes"] == len(values["returns"]) == 3
    assert values["interval"]["low"] <= values["mean"] <= values["interval"]["high"] < 0
    table = telos("eval", "runs/bc-1", "--env", "Pendulum-v1", "--episodes", "3")[1]
    assert "mean return" in table and f"{values['mean']:.4g}" in table
    assert telos("eval", "runs/bc-1")[0] == 2
    assert telos(*command)[0] == 0 and (tmp_path / "runs/bc-2/product").is_dir()


def test_a_killed_run_is_resumed_and_a_finished_one_is_said_to_be(
    telos: Telos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from telos.core.fit import Run

    data = transitions(tmp_path)
    command = ["fit", "bc", "--data", data, "--steps", "20", "--hidden", "8", "--checkpoint-every", "6"]
    assert telos(*command, "--device", "cpu", "--out", "whole")[0] == 0
    log = Run._log

    def kill(run: Run, stage: str, step: int, numbers: dict[str, float]) -> None:
        log(run, stage, step, numbers)
        if step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_log", kill)
    code, _, err = telos(*command, "--device", "cpu", "--out", "cut")
    assert code == 130 and "`telos resume cut` goes on" in err
    monkeypatch.setattr(Run, "_log", log)
    assert "telos resume cut" in telos("eval", "cut", "--env", "Pendulum-v1")[2]
    code, out, err = telos("resume", "cut")
    assert code == 0, err
    whole, cut = (load_product(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all((whole[name] == cut[name]).all() for name in whole) and "cut/product" in out
    assert "finished already" in telos("resume", "cut")[1]
    code, _, err = telos(*command, "--out", "cut")
    assert code == 2 and "not empty" in err


def test_options_as_json_and_back(telos: Telos, tmp_path: Path):
    code, out, _ = telos("fit", "dpo", "--beta", "0.3", "--loss", "ipo", "--print-config")
    config = json.loads(out)
    assert code == 0 and (config["beta"], config["loss"], config["max_length"]) == (0.3, "ipo", None)
    file = tmp_path / "options.json"
    file.write_text(out)
    again = json.loads(telos("fit", "dpo", "--config", file, "--beta", "0.7", "--print-config")[1])
    assert again == {**config, "beta": 0.7}
    for wrong, message in (({"beta": "x"}, "option 'beta'"), ({"bet": 1}, "no option 'bet'"), ([], "JSON object")):
        file.write_text(json.dumps(wrong))
        code, _, err = telos("fit", "dpo", f"--config={file}", "--print-config")
        assert code == 2 and message in err


def test_help_of_a_method_has_effect_default_and_source(telos: Telos):
    code, out, _ = telos("fit", "dpo", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    assert "--beta FLOAT Strength of the pull to the reference" in text and "Paper: 0.1 (HH)" in text
    assert "(default: 0.1)" in text and "--checkpoint-every" in text and "arXiv 2305.18290" in text
    assert "--beta" in telos("fit", "dpo.dporanking", "--help")[1]


def test_a_language_model_from_pairs_to_its_measures(telos: Telos, tmp_path: Path):
    pytest.importorskip("transformers")
    data, options = pairs(tmp_path), ["--model", "telos:tiny", "--device", "cpu"]
    code, out, err = telos("fit", "dpo", "--data", data, *options, "--steps", "4", "--batch-size", "6")
    assert code == 0, err
    assert "12 records: 12 used" in out and "LanguagePolicy" in out and "step 4" in out
    values = json.loads(telos("eval", "runs/dpo-1", "--data", data, "--json")[1])
    assert values["pairs"] == 12 and 0 <= values["chosen more likely"]["estimate"] <= 1
    assert values["chosen log-prob a token"]["high"] < 0

    fit = ["fit", "reward_model", "--data", data, *options, "--learning-rate", "1e-3", "--steps", "8", "--out", "rm"]
    assert telos(*fit)[0] == 0
    values = json.loads(telos("eval", "rm", "--data", data, "--json")[1])
    # All pairs prefer the same words: 12 of 12, whose exact lower end is 0.025 ** (1 / 12).
    assert values["accuracy"]["estimate"] == 1 and values["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 12))

    rl = ["fit", "rloo", "--data", data, *options, "--steps", "1", "--max-new-tokens", "4"]
    assert telos(*rl, "--purpose", "rm", "--out", "by_model")[0] == 0
    assert json.loads((tmp_path / "by_model/run.json").read_text())["given"]["purpose"] == str(tmp_path / "rm")


def test_a_function_as_purpose_is_named_again_and_must_be_the_same(telos: Telos, tmp_path: Path):
    pytest.importorskip("transformers")
    file = tmp_path / "reward.py"
    file.write_text("def score(prompts, completions):\n    return [float(len(text)) for text in completions]\n")
    command = ["fit", "rloo", "--data", pairs(tmp_path), "--model", "telos:tiny", "--steps", "2", "--device", "cpu"]
    command += ["--max-new-tokens", "4", "--out", "run"]
    assert "no function 'scor'" in telos(*command, "--purpose", "reward.py:scor")[2]
    assert not (tmp_path / "run").exists()
    assert telos(*command, "--purpose", "reward.py:score")[0] == 0
    shutil.rmtree(tmp_path / "run/product")
    assert "must be named again" in telos("resume", "run")[2]
    assert telos("resume", "run", "--purpose", "reward.py:score")[0] == 0
    shutil.rmtree(tmp_path / "run/product")
    file.write_text(file.read_text() + "# changed\n")
    code, _, err = telos("resume", "run", "--purpose", "reward.py:score")
    assert code == 2 and "its purpose differs" in err


# A new paper.


def test_a_skeleton_is_clean_learns_and_says_what_is_left(tmp_path: Path):
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tree / "src", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "tests/methods").mkdir(parents=True)
    slug = PLANNED or "another_paper"
    code = (
        f"slug, family = {slug!r}, {[] if PLANNED else ['--family', 'agents']}\n"
        "import sys; from telos.cli import main; import telos; print(telos.__file__)\n"
        "assert main(['new', slug, *family]) == main(['new', 'a_paper', '--family', 'agents']) == 0\n"
        "assert main(['new', slug, *family]) == 2\n"
        "from telos.core.registry import entries, public_classes\n"
        "entries.cache_clear(), public_classes.cache_clear()\n"
        "from telos.worlds import lineworld\n"
        "policy = telos.use(slug).fit(lineworld.dataset(64), steps=2, out='run')\n"
        "from telos.judge.claim import load_claim\n"
        "assert list(load_claim(slug, 'laptop').arms) == ['ours', 'bc']\n"
        "assert telos.load_product('run').provenance['method'] == slug\n"
    )
    env = {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert str(tree) in done.stdout and f"pytest tests/methods/test_{slug}.py" in done.stdout
    files = [tree / line for line in done.stdout.splitlines() if line.endswith(".py") and not line.startswith(" ")]
    files = [file for file in files if file.name != "__init__.py"]
    assert len(files) == 6 and all("TODO" in file.read_text() for file in files)
    pytest.importorskip("ruff")
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", *map(str, files)]
        done = subprocess.run(ruff, cwd=tree, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
