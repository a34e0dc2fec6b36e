"""The table of what is measured: names, work, peers, aims. `run.py` measures a row, `row_tables.py` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pair:
    """Two workers in turn, ours and one to compare with.

    Args:
        work: one round of it; against: what it is compared with, in words.
        peer: the environment of the other worker, of workers.PEERS; "" for ours.
        ours, theirs: a script beside this one and what it is given.
        unit: of the amounts that the workers tell; their_unit: where the other's is another.
        aim: None where the figure is only reported.
        figure: speed: ours over theirs, at least the aim; share: the same as a share of what is possible; cost: how
            many units of theirs one of ours takes, at most the aim.
    """

    work: str
    against: str
    peer: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    unit: str
    aim: float | None
    figure: Literal["speed", "share", "cost"] = "speed"
    their_unit: str = ""
    rounds: int = 10


@dataclass(frozen=True)
class Check:
    """A number that says whether two things agree: what a script prints, or the largest difference of two lists.

    Args:
        ours: a script and its arguments; theirs: the peer's, or nothing.
        sense: whether the number should be at most or at least the aim.
    """

    work: str
    against: str
    peer: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    aim: float
    sense: Literal["at most", "at least"] = "at most"


@dataclass(frozen=True)
class Command:
    """Seconds of a command in a new process, an empty folder and with an empty cache: the median of `rounds`.

    Args:
        arguments: of the Python that runs this.
    """

    work: str
    arguments: tuple[str, ...]
    aim: float
    rounds: int = 9


OFFLINE = "batch 256, two hidden layers of 256, observation 17, action 6, 100,000 rows"
DPO = "Llama of 4.2 M parameters, 16 pairs an update, lengths of real dialogues"
ROUND = "16 prompts, 4 completions each of 64 tokens, one update, Llama of 4.2 M parameters"
SIZES = {"tiny": "model of 0.26 M parameters", "llama": "Llama of 4.2 M parameters"}
OWN = {
    "single_file": ("separate networks, eager", "", "single_file.py"),
    "d3rlpy": ("d3rlpy", "d3rlpy", "peer_d3rlpy.py"),
    "jax": ("JAX, scan of updates", "jax", "peer_jax.py"),
}
AIMS = {"d3rlpy": 3.0, "single_file": 2.0, "jax": 1.0}
UPDATES = {
    "iql": ("d3rlpy", "single_file", "jax"),
    "td3_bc": ("d3rlpy", "single_file", "jax"),
    "prdc": ("single_file",),
}


def offline() -> dict[str, Pair]:
    """Updates of offline methods against each peer."""
    return {
        f"{method}/{peer}": Pair(
            OFFLINE,
            OWN[peer][0],
            OWN[peer][1],
            ("offline.py", method),
            (OWN[peer][2], method),
            "updates",
            AIMS[peer],
            rounds=6 if method == "prdc" else 10,
        )
        for method, peers in UPDATES.items()
        for peer in peers
    }


def shares() -> dict[str, Pair]:
    """Their share of the matrix peak; PRDC's search would count its own products."""
    return {
        f"{method}/peak": Pair(
            OFFLINE, "product of 2048 x 2048 matrices", "", ("offline.py", method, "GFLOP"), ("peak.py",), "GFLOP", 0.7,
            "share",
        )
        for method in ("iql", "td3_bc")
    }  # fmt: skip


def sampling() -> dict[str, Pair]:
    """64 tokens a prompt, two models, two batches, generate as it is and at its best."""
    ways = {"generate": "transformers' generate", "compiled": "the same, static cache, compiled"}
    return {
        f"sampling/{model}-{batch}/{way}": Pair(
            f"64 tokens for {batch} prompts, {size}", words, "", ("sampling.py", model, str(batch), "telos"),
            ("sampling.py", model, str(batch), way), "tokens", 4.0, rounds=8,
        )
        for model, size in SIZES.items()
        for batch in (32, 256)
        for way, words in ways.items()
    }  # fmt: skip


def searches() -> dict[str, Pair | Check]:
    """PRDC's, in as many dimensions as HalfCheetah has, and in few."""
    rows: dict[str, Pair | Check] = {}
    for state, action, batches in (("17", "6", "2"), ("4", "2", "20")):
        work = f"nearest of 1,000,000 pairs, {state} + {action} dimensions, 256 keys at a time"
        script = ("search.py", state, action, batches)
        rows[f"search/{state}+{action}"] = Pair(
            work, "scipy's KDTree, all threads", "", (*script, "telos"), (*script, "scipy"), "queries", 1.0, rounds=6
        )
        rows[f"search/{state}+{action}/equal"] = Check(
            f"distances found ({state} + {action} dimensions), largest relative difference", "scipy's KDTree", "",
            (*script, "equal"), (), 1e-6,
        )  # fmt: skip
    return rows


ROWS: dict[str, Pair | Check | Command] = {
    **offline(),
    **shares(),
    "seeds/apart": Pair(
        f"8 seeds together, {OFFLINE}", "one seed after another", "", ("seeds.py", "iql", "8"), ("offline.py", "iql"),
        "updates", 1.0,
    ),
    "seeds/apart_small": Pair(
        "TD3+BC, 8 seeds together, batch 64, two hidden layers of 32", "one seed after another", "",
        ("seeds.py", "td3_bc", "8", "32", "64"), ("seeds.py", "td3_bc", "1", "32", "64"), "updates", 1.0,
    ),
    "dpo/trl": Pair(DPO, "TRL", "trl", ("dpo.py",), ("peer_trl.py",), "pairs", 2.0, rounds=5),
    "dpo/trl_grouped": Pair(
        DPO, "the same, pairs of like length together", "trl", ("dpo.py",), ("peer_trl.py", "grouped"), "pairs", 2.0,
        rounds=5,
    ),
    "dpo/losses": Check(
        "losses of 50 updates on the same pairs, largest difference", "TRL", "trl", ("dpo.py", "losses"),
        ("peer_trl.py", "losses"), 1e-4,
    ),
    **sampling(),
    "sampling/greedy": Check(
        "greedy completions of 64 prompts, how many differ", "transformers' generate", "",
        ("sampling_checks.py", "greedy"), (), 0,
    ),
    "sampling/distribution": Check(
        "sampled next tokens, p-value of a chi-square test", "transformers' generate", "",
        ("sampling_checks.py", "distribution"), (), 0.01, "at least",
    ),
    "rloo/trl": Pair(ROUND, "TRL's RLOOTrainer", "trl", ("rloo.py",), ("peer_rloo.py",), "rounds", 2.0, rounds=8),
    "rloo/trl_static": Pair(
        ROUND, "the same, static cache", "trl", ("rloo.py",), ("peer_rloo.py", "static"), "rounds", 2.0, rounds=8
    ),
    "beso/forward": Pair(
        "an action in 3 steps, transformer of 4 layers, 240 wide", "the network alone", "", ("beso.py", "act"),
        ("beso.py", "forward"), "actions", 3.5, "cost", "forwards",
    ),
    "deal/sampling": Pair(
        "32 tokens, 5 candidates and 8 tokens of look-ahead each", "plain sampling", "", ("guided.py", "deal"),
        ("guided.py", "sampled"), "completions", None, "cost", rounds=6,
    ),
    **searches(),
    "command/import": Command("import telos", ("-c", "import telos"), 0.3),
    "command/papers": Command("telos papers", ("-m", "telos", "papers"), 0.6),
    "command/help": Command("telos fit dpo --help", ("-m", "telos", "fit", "dpo", "--help"), 1.0),
    "command/first_verdict": Command(
        "telos check squarecb_adyen, the first verdict", ("-m", "telos", "check", "squarecb_adyen"), 60.0, 1
    ),
}  # fmt: skip


def chosen(names: list[str]) -> list[str]:
    """The rows with these names, or whose names go on after one of them (`iql`, `sampling/tiny-32`); all for none.

    Raises:
        KeyError: a name that is neither.
    """
    found = {name: [row for row in ROWS if f"{row}/".startswith(f"{name}/")] for name in names}
    for name, rows in found.items():
        if not rows:
            raise KeyError(name)
    return [row for row in ROWS if not names or any(row in rows for rows in found.values())]
