"""Two processes take the steps of one: the same losses within 1e-5, one set of files."""

import json
import os
import subprocess
import sys
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


def fit(processes: int, folder: Path, out: str, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*(launcher if processes > 1 else []), "-m", "telos", "fit", *options, "--out", out]
    environment = os.environ | {"TELOS_PROGRESS": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=170
    )


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


def test_a_method_that_cannot_be_shared_is_refused(tmp_path: Path):
    done = fit(2, tmp_path, "run", "rloo", "--data", str(prompts(tmp_path)), "--model", "telos:tiny", "--purpose",
               "length", "--steps", "2", "--device", "cpu")  # fmt: skip
    assert done.returncode != 0
    assert "RLOO cannot be trained by several processes" in done.stderr
    assert not (tmp_path / "run").exists()
