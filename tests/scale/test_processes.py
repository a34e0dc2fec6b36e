"""Two processes take the steps of one: the same losses within 1e-5, one set of files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from telos.core.products import load_product
from telos.worlds import tiny_sent

WORDS = ("good0", "good1", "good2", "bad0", "bad1")


def pairs(folder: Path) -> Path:
    """51 pairs of various lengths, so that the last batch of an epoch is a single pair."""
    rows = [
        {"prompt": f"topic{i % 4}", "chosen": " good0" * (1 + i % 5), "rejected": " " + " ".join(WORDS[i % 3 :])}
        for i in range(51)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def prompts(folder: Path) -> Path:
    texts = sorted(set(tiny_sent.prompts(64, __import__("numpy").random.default_rng(0))))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return folder / "prompts.jsonl"


def launch(processes: int, folder: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"TELOS_PROGRESS": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "telos", *command], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finished(started: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    output, errors = started.communicate(timeout=170)
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


def fit(processes: int, folder: Path, out: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return finished(launch(processes, folder, "fit", *options, "--out", out, **variables))


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("time",)} for row in rows]


OPTIONS = {
    "dpo": ("--model", "telos:tiny", "--steps", "20", "--batch-size", "10", "--learning-rate", "3e-4",
            "--warmup-steps", "0", "--micro", "2"),
    "rpo": ("--model", "telos:tiny", "--steps", "20", "--batch-size", "10", "--learning-rate", "3e-4"),
    "reward_model": ("--model", "telos:tiny", "--steps", "20", "--batch-size", "10", "--learning-rate", "1e-3"),
}  # fmt: skip


ROUNDS = ("--model", "telos:tiny", "--purpose", "length", "--steps", "20", "--rounds", "2", "--prompts-per-round", "80",
          "--batch-size", "10", "--learning-rate", "3e-4", "--max-new-tokens", "12")  # fmt: skip
OPTIONS |= {
    "inpo": (*ROUNDS, "--eta", "0.5", "--tau", "0.1", "--pairs", "iid", "--samples-per-prompt", "4"),
    "dno": (*ROUNDS, "--eta", "0.5", "--samples-per-prompt", "3"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, name: str):
    data = str(prompts(tmp_path) if name in ("inpo", "dno") else pairs(tmp_path))
    for processes in (1, 2):
        done = fit(processes, tmp_path, f"run{processes}", name, "--data", data, "--device", "cpu", *OPTIONS[name])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("product") == 2  # one line, which names it twice
    one, two = metrics(tmp_path / "run1"), metrics(tmp_path / "run2")
    if name in ("inpo", "dno"):  # two processes judge twice as many prompts a step
        one, two = ([row for row in rows if row["stage"].endswith("update")] for rows in (one, two))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"stage"}:
            assert b[key] == pytest.approx(a[key], abs=1e-5, rel=1e-4), key
    assert load_product(tmp_path / "run2") is not None


SHARED_OUT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""


@pytest.mark.parametrize("lora", [(), ("--lora", "4")])
def test_processes_that_hold_the_model_together_take_the_steps_of_one(tmp_path: Path, lora: tuple[str, ...]):
    lines = pairs(tmp_path).read_text().splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines[:50]) + "\n")
    options = ("--data", "pairs.jsonl", "--device", "cpu", *OPTIONS["dpo"], *lora)
    alone = fit(1, tmp_path, "run1", "dpo", *options)
    shared = fit(2, tmp_path, "run2", "dpo", *options, **SHARED_OUT)
    assert alone.returncode == 0 and shared.returncode == 0, shared.stderr
    for a, b in zip(metrics(tmp_path / "run1"), metrics(tmp_path / "run2"), strict=True):
        for key in a.keys() - {"stage"}:
            assert b[key] == pytest.approx(a[key], abs=1e-5, rel=1e-4), key
    one, two = (load_product(tmp_path / run) for run in ("run1", "run2"))
    for a, b in zip(one.model.network.parameters(), two.model.network.parameters(), strict=True):
        assert a.shape == b.shape and float((a - b).detach().abs().max()) < 2e-4  # Adam turns rounding into steps


def test_a_killed_run_of_processes_that_hold_the_model_together_goes_on(tmp_path: Path):
    lines = pairs(tmp_path).read_text().splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines[:50]) + "\n")
    options = (
        "--data",
        "pairs.jsonl",
        "--device",
        "cpu",
        *OPTIONS["dpo"],
        "--steps",
        "100",
        "--checkpoint-every",
        "10",
    )
    whole = fit(2, tmp_path, "whole", "dpo", *options, **SHARED_OUT)
    assert whole.returncode == 0, whole.stderr
    started = launch(2, tmp_path, "fit", "dpo", *options, "--out", "cut", **SHARED_OUT)
    deadline = time.monotonic() + 150
    while not [*(tmp_path / "cut/checkpoints").glob("main-*0")] and time.monotonic() < deadline:
        time.sleep(0.02)
    started.terminate()  # the launcher kills its processes
    started.communicate(timeout=60)
    assert [*(tmp_path / "cut/checkpoints").iterdir()] and not (tmp_path / "cut/product").exists()
    resumed = finished(launch(2, tmp_path, "resume", "cut", **SHARED_OUT))
    assert resumed.returncode == 0, resumed.stderr
    rows, again = metrics(tmp_path / "whole"), metrics(tmp_path / "cut")
    assert [row["step"] for row in again] == [row["step"] for row in rows]
    for a, b in zip(rows, again, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)


def test_what_cannot_be_shared_out_is_refused(tmp_path: Path):
    options = ("--data", str(pairs(tmp_path)), "--device", "cpu", *OPTIONS["dpo"])
    done = fit(2, tmp_path, "run", "dpo", *options, **SHARED_OUT)
    assert done.returncode != 0 and "a batch of 1 cannot be shared among 2 processes" in done.stderr
    options = ("--data", str(prompts(tmp_path)), "--device", "cpu", *OPTIONS["inpo"])
    done = fit(2, tmp_path, "other", "inpo", *options, **SHARED_OUT)
    assert done.returncode != 0 and "INPO cannot share out its model" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_method_that_cannot_be_shared_is_refused(tmp_path: Path):
    done = fit(2, tmp_path, "run", "rloo", "--data", str(prompts(tmp_path)), "--model", "telos:tiny", "--purpose",
               "length", "--steps", "2", "--device", "cpu")  # fmt: skip
    assert done.returncode != 0
    assert "RLOO cannot be trained by several processes" in done.stderr
    assert not (tmp_path / "run").exists()
