"""What headers say about use is run as written: in a fresh folder that holds the example files and nothing else.

A line that begins with "telos " is the shell's, any other is Python's. The two halves of a paper's lines run in two
folders, so that each stands on its own. Their process is forked from one that has imported torch and transformers
already: seconds for the whole catalogue instead of minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import telos
from telos.cli import fit
from telos.core.registry import Entry, entries, method_class
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.records import Demonstrations, LoggedBandit, Preferences, Prompts, Rankings, Transitions
from telos.data.scored import ScoredTexts
from telos.worlds import bypass2d, payments, sessions, tiny_sent

EXAMPLES = {
    "prompts.jsonl": Prompts,
    "texts.jsonl": Demonstrations,
    "pairs.jsonl": Preferences,
    "rankings.jsonl": Rankings,
    "scored.jsonl": ScoredTexts,
    "transitions.npz": Transitions,
    "play.npz": Transitions,
    "log.csv": LoggedBandit,
    "other_log.csv": LoggedBandit,
    "sessions.csv": Transitions,
}
"""The names that usage lines may rely on, and what is in them. Texts are of telos:tiny's language; transitions.npz was
recorded in Pendulum-v1, play.npz holds ways through a plane (position, step), the logs requests sent by 8 routes,
sessions.csv users who were shown items, with columns like and share."""

TEXTS = 48
PAPERS = [entry for entry in entries().values() if not entry.baseline]
each_paper = pytest.mark.parametrize("entry", PAPERS, ids=lambda entry: entry.slug)


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example files."""
    pytest.importorskip("gymnasium")
    folder, rng = tmp_path_factory.mktemp("examples"), Rng(1000)
    prompts, first = tiny_sent.sentences(TEXTS, rng.at("texts").numpy())
    _, second = tiny_sent.sentences(TEXTS, rng.at("others").numpy())
    texts = [sorted((f" {a}", f" {b}"), key=lambda text: -text.count("good")) for a, b in zip(first, second)]
    rows: dict[str, list[dict[str, Any]]] = {
        "prompts": [{"prompt": prompt} for prompt in prompts],
        "texts": [{"prompt": p, "completion": best} for p, (best, _) in zip(prompts, texts)],
        "pairs": [{"prompt": p, "chosen": best, "rejected": worst} for p, (best, worst) in zip(prompts, texts)],
        "rankings": [{"prompt": p, "ranked": both} for p, both in zip(prompts, texts)],
        "scored": [
            {"prompt": p, "responses": both, "scores": [text.count("good") for text in both]}
            for p, both in zip(prompts, texts)
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    pendulum = telos.load("gym:Pendulum-v1?steps=1000")
    assert isinstance(pendulum, Transitions)
    save_npz(pendulum, folder / "transitions.npz")
    save_npz(bypass2d.dataset(40, rng), folder / "play.npz")
    world = payments.Payments.draw(rng)
    for name in ("log", "other_log"):
        (folder / f"{name}.csv").write_text(table(world.log(400, rng.at(name))))
    (folder / "sessions.csv").write_text(session_table(sessions.log(40, rng.at("sessions"))))
    assert {file.name for file in folder.iterdir()} == set(EXAMPLES)
    return folder


def table(log: LoggedBandit) -> str:
    """A log as CSV: the context, the allowed routes, the one taken with its probability, and what came of it."""
    assert log.propensities is not None
    lines = [",".join([*(f"x{i}" for i in range(payments.FEATURES)), "allowed,action,propensity,reward"])]
    for row in range(len(log)):
        numbers = [f"{value:.6f}" for value in log.contexts[row].tolist()]
        routes = "|".join(f"route{i}" for i in log.allowed[row].nonzero()[:, 0].tolist())
        taken = f"route{int(log.actions[row])},{float(log.propensities[row]):.6f},{float(log.rewards[row]):g}"
        lines.append(",".join([*numbers, routes, taken]))
    return "\n".join(lines) + "\n"


def session_table(log: Transitions) -> str:
    """Sessions as CSV: what was seen, the item, the seconds watched, whether it was liked and shared."""
    assert log.auxiliary is not None
    names = [name.replace("=", "") for name in log.observation_names]
    lines, number = [",".join(["session", *names, "action,reward,like,share"])], 0
    for row in range(len(log)):
        seen = [f"{value:.6f}" for value in log.observations[row].tolist()]
        earned = [f"{value:g}" for value in [float(log.rewards[row]), *log.auxiliary[row].tolist()]]
        lines.append(",".join([f"user{number}", *seen, f"item{int(log.actions[row])}", *earned]))
        number += int(log.terminated[row] | log.truncated[row])
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_files_are_what_they_are_called(examples: Path, name: str):
    kind = EXAMPLES[name]
    assert type(telos.load(examples / name, kind=kind)) is kind


def halves(entry: Entry) -> tuple[list[str], list[str]]:
    """Lines for the shell, and lines of Python."""
    shell = [line for line in entry.header["usage"] if line.startswith("telos ")]
    return shell, [line for line in entry.header["usage"] if line not in shell]


PRELOADED = [
    "torch._dynamo", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "accelerate", "tyro", "pyarrow", "pandas", "gymnasium",
    "telos.cli.fit", "telos.judge.evaluate", "telos.lm.model",
]  # fmt: skip
"""What most of a line's time would go into."""

FORKS = multiprocessing.get_context("forkserver") if "forkserver" in multiprocessing.get_all_start_methods() else None


def shell_lines(lines: list[str]) -> None:
    """Each as the installed command would run it."""
    from telos.cli import main

    for line in lines:
        print(f"$ {line}", flush=True)
        if code := main(shlex.split(line)[1:]):
            sys.exit(code)


def python_lines(lines: list[str]) -> None:
    """In order, in one namespace in which telos is imported."""
    namespace: dict[str, Any] = {"telos": telos}
    for line in lines:
        print(f">>> {line}", flush=True)
        exec(compile(line, line, "exec"), namespace)


def inside(folder: Path, run: Callable[[list[str]], None], lines: list[str]) -> None:
    """In the process of the lines: everything that it prints goes to output.txt."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    run(lines)


def run(lines: list[str], how: Callable[[list[str]], None], examples: Path, folder: Path) -> None:
    """Runs the lines in `folder`, made anew with the example files in it; fails with what they printed."""
    assert FORKS is not None
    FORKS.set_forkserver_preload(PRELOADED)
    shutil.copytree(examples, folder)
    process = FORKS.Process(target=inside, args=(folder, how, lines))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, (folder / "output.txt").read_text()


@pytest.mark.skipif(FORKS is None, reason="processes cannot be forked here")
@each_paper
def test_shell_lines_run_as_written_and_write_what_they_promise(entry: Entry, examples: Path, tmp_path: Path):
    shell, _ = halves(entry)
    run(shell, shell_lines, examples, tmp_path / "here")
    promised = re.findall(r"--out (\S+)", " ".join(shell))
    assert promised and all((tmp_path / "here" / name / "product" / "config.json").is_file() for name in promised)


@pytest.mark.skipif(FORKS is None, reason="processes cannot be forked here")
@each_paper
def test_python_lines_run_as_written_and_write_what_they_promise(entry: Entry, examples: Path, tmp_path: Path):
    _, python = halves(entry)
    run(python, python_lines, examples, tmp_path / "here")
    promised = re.findall(r"""(?:save\(|out=)["']([^"']+)["']""", " ".join(python))
    assert promised and all(any((tmp_path / "here" / name).iterdir()) for name in promised)
    for name in re.findall(r"""save\(["']([^"']+)["']\)""", " ".join(python)):
        assert telos.load_product(tmp_path / "here" / name).provenance["method"] == entry.slug


def test_a_line_that_fails_is_noticed(examples: Path, tmp_path: Path):
    if FORKS is None:
        pytest.skip("processes cannot be forked here")
    with pytest.raises(AssertionError, match=r"no_such\.npz"):
        run(["telos fit bc --data no_such.npz --steps 2"], shell_lines, examples, tmp_path / "shell")
    with pytest.raises(AssertionError, match="no_such_name"):
        run(["no_such_name + 1"], python_lines, examples, tmp_path / "python")


@each_paper
def test_the_line_for_the_papers_scale_has_only_options_that_exist(entry: Entry):
    words = shlex.split(entry.header["at_scale"])
    assert words[:2] == ["telos", "fit"] and words[2].partition(".")[0] == entry.slug
    method, options = fit.parse(method_class(words[2]), words[2], entry, words[3:])
    assert options.steps or not method.trains
    assert options.data or method.data is None
