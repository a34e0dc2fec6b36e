"""How well methods tell chosen from rejected on pairs of real dialogues that they have not seen.

    python bench/real_pairs.py --data test.jsonl.gz [--seeds 0 1 2 3 4] [--out FOLDER] [--jobs 2]

For pairs of anthropics/hh-rlhf (harmless), and any file of pairs. Each seed is a split of its own: dialogues with the
same first human turn (and so those with the same prompt) are on one side. All training is on the training side:

    sft       the bundled model of children's stories, fitted to chosen answers: where all others start
    reward    a Bradley-Terry reward model
    dpo, rpo  as their papers; RPO imitates the chosen answers and needs no rewards
    ra_dpo    on scores of that reward model, asked for the highest one; twice the updates, for it has twice the pairs

Accuracy: the share of held-out pairs whose chosen answer gets more, ties count one half. A policy gives its implicit
reward, log pi(y|x) - log pi_ref(y|x); ra_dpo with the request in the prompt of both, and also by how much more likely
the top request makes an answer than the lowest, which drift of all answers leaves alone. Nothing is chosen by what is
held out. Writes a section of RESULTS.md and a row of results.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import telos
from report import HERE, about, record
from telos.core.rng import Rng
from telos.judge.stats import paired_t
from telos.lm.products import LanguagePolicy

MODEL = "telos:stories260k"
PROMPT_CHARACTERS, ANSWER_CHARACTERS = 96, 144
TRAIN, HELD_OUT, BATCH = 640, 480, 32
BETA, ETA = 0.1, 0.005
TURN, ANSWER = "\n\nHuman:", "\n\nAssistant:"
ROWS = {
    "coin": "a coin",
    "longer": "the longer answer",
    "shorter": "the shorter answer",
    "sft": "log-prob of the reference",
    "reward": "reward model",
    "dpo": "DPO, implicit reward",
    "rpo": "RPO, implicit reward",
    "ra_dpo": "RA-DPO, implicit reward at the top request",
    "ra_dpo asked": "RA-DPO, log-prob at the top request less that at the lowest",
}

Pair = tuple[str, str, str]


def read(path: str) -> list[Pair]:
    """Prompt, chosen, rejected; an implicit prompt ends at the last 'Assistant:' that both texts begin with."""
    data: Any = telos.load(path, kind=telos.Preferences)
    pairs = []
    for prompt, chosen, rejected in zip(data.prompts, data.chosen, data.rejected, strict=True):
        if prompt is None:
            differs = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
            end = chosen.rfind(ANSWER, 0, differs) + len(ANSWER)
            if end < len(ANSWER):
                continue
            prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
        pairs.append((prompt, chosen, rejected))
    return pairs


def first_turn(prompt: str) -> str:
    """What the human says first, whatever its spaces and capitals."""
    text = prompt.removeprefix(TURN).split(ANSWER)[0]
    return re.sub(r"\s+", " ", text).strip().casefold()


def clipped(pair: Pair) -> Pair:
    """The prompt's end and the answers' beginnings."""
    prompt, chosen, rejected = pair
    return prompt[-PROMPT_CHARACTERS:], chosen[:ANSWER_CHARACTERS], rejected[:ANSWER_CHARACTERS]


def split(pairs: list[Pair], rng: Rng) -> tuple[list[int], list[int]]:
    """Places of TRAIN and of HELD_OUT pairs (fewer of a small file), first turns on one side only."""
    turns = [first_turn(prompt) for prompt, _, _ in pairs]
    names = sorted(set(turns))
    order = rng.at("split").numpy().permutation(len(names))
    training = {names[i] for i in order[: len(names) // 2]}
    places = rng.at("places").numpy().permutation(len(pairs)).tolist()
    sides = [i for i in places if turns[i] in training], [i for i in places if turns[i] not in training]
    return sides[0][:TRAIN], sides[1][:HELD_OUT]


def one_seed(pairs: list[Pair], seed: int, epochs: float) -> tuple[list[int], dict[str, list[float]]]:
    """The held-out places and, for each row, 1, 1/2 or 0 for each of them."""
    torch.set_num_threads(1)
    rng = Rng(seed)
    training, held_out = split(pairs, rng)
    prompts, chosen, rejected = (list(column) for column in zip(*(clipped(pairs[i]) for i in training), strict=True))
    data = telos.Preferences(prompts, chosen, rejected)
    steps = max(1, round(epochs * len(training) / BATCH))
    shared: dict[str, Any] = {"batch_size": BATCH, "warmup_steps": 0, "overlong": "truncate"}
    sft = telos.SFT(learning_rate=1e-3, **shared).fit(data, model=MODEL, steps=steps, seed=seed)
    reward = telos.RewardModel(learning_rate=1e-3, **shared).fit(data, model=sft, steps=2 * steps, seed=seed)
    shared |= {"learning_rate": 3e-4, "beta": BETA}
    dpo = telos.DPO(**shared).fit(data, model=sft, steps=steps, seed=seed)
    rpo = telos.RPO(eta=ETA, **shared).fit(data, model=sft, steps=steps, seed=seed)
    raw = torch.stack([reward.score(prompts, texts) for texts in (chosen, rejected)], -1)
    scores = (5.5 + 2 * (raw - raw.mean()) / raw.std().clamp(min=1e-6)).round().clamp(1, 10)
    scored = telos.ScoredTexts(prompts, list(zip(chosen, rejected, strict=True)), scores.tolist())
    # The request stands at the prompt's end, which is never cut off.
    ra_dpo = telos.RADPO(template="{prompt} [{score}]", **shared).fit(scored, model=sft, steps=2 * steps, seed=seed)

    prompts, chosen, rejected = (list(column) for column in zip(*(clipped(pairs[i]) for i in held_out), strict=True))
    asked, low = ([ra_dpo.prompt(prompt, goal) for prompt in prompts] for goal in (None, scores.min().item()))
    policy = LanguagePolicy(ra_dpo.model)

    def margin(model: LanguagePolicy, given: list[str] = prompts) -> Tensor:
        return model.log_prob(given, chosen) - model.log_prob(given, rejected)

    lengths = torch.tensor([float(len(pairs[i][1]) - len(pairs[i][2])) for i in held_out])
    reference = margin(sft)
    margins = {
        "coin": torch.from_numpy(rng.at("coin").numpy().standard_normal(len(held_out))),
        "longer": lengths,
        "shorter": -lengths,
        "sft": reference,
        "reward": reward.score(prompts, chosen) - reward.score(prompts, rejected),
        "dpo": margin(dpo) - reference,
        "rpo": margin(rpo) - reference,
        "ra_dpo": margin(policy, asked) - margin(sft, asked),
        "ra_dpo asked": margin(policy, asked) - margin(policy, low),
    }
    return held_out, {name: ((value.sign() + 1) / 2).tolist() for name, value in margins.items()}


def over_prompts(found: list[tuple[list[int], dict]], row: str, groups: list[str], resamples: int = 2000) -> dict:
    """Percentile interval of the mean accuracy over seeds: first turns are resampled, the same ones in every split."""
    numbers = {name: i for i, name in enumerate(sorted(set(groups)))}
    sums, counts = np.zeros((2, len(found), len(numbers)))
    for split_, (places, correct) in enumerate(found):
        own = [numbers[groups[place]] for place in places]
        np.add.at(sums[split_], own, correct[row])
        np.add.at(counts[split_], own, 1)
    draw = Rng(0).at("bootstrap").numpy()
    weights = draw.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), resamples)
    low, high = np.quantile((weights @ sums.T / (weights @ counts.T).clip(1)).mean(-1), [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="an update or two of each method, for tests")
    options = parser.parse_args()
    start, pairs = time.time(), read(options.data)
    os.environ["TELOS_PROGRESS"] = "0"
    work = partial(one_seed, pairs, epochs=0.0 if options.quick else 1.0)
    if options.jobs == 1:
        found = [work(seed) for seed in options.seeds]
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(work, options.seeds))
    groups = [first_turn(prompt) for prompt, _, _ in pairs]
    rows = {}
    for name, work in ROWS.items():
        means = [float(np.mean(correct[name])) for _, correct in found]
        seeds = paired_t(means).to_json()
        rows[name] = {"work": work, "means": means, "seeds": seeds, "prompts": over_prompts(found, name, groups)}
    long = sum(len(p) > PROMPT_CHARACTERS for p, _, _ in pairs) / len(pairs)
    cut = sum(max(len(c), len(r)) > ANSWER_CHARACTERS for _, c, r in pairs) / len(pairs)
    file, seeds = Path(options.data), " ".join(map(str, options.seeds))
    held_out = min(len(places) for places, _ in found)
    text = (
        f"{len(pairs):,} pairs of {file.parent.name}/{file.name}; {len(found)} random splits (seeds {seeds}) by the "
        f"first human turn, up to {TRAIN} pairs to train on and {held_out} held out. `{MODEL}` (0.26 M parameters) is "
        "first fitted to the chosen answers, which is the reference; one epoch a method, two for the reward model. Of "
        f"a prompt the last {PROMPT_CHARACTERS} characters are kept ({long:.0%} are longer), of an answer the first "
        f"{ANSWER_CHARACTERS} ({cut:.0%} of pairs have a longer one). Ties count one half. 95 % intervals: over seeds "
        "by t (splits overlap, so it is somewhat too narrow); over prompts by bootstrap of first turns, the same ones "
        "in every split. RA-DPO's scores are those of the reward model of its own training side."
    )
    result = {
        "command": f"python bench/real_pairs.py --data {file.name} --seeds {seeds}",
        "text": text, "seconds": time.time() - start, "rows": rows,
    }  # fmt: skip
    print(record("real_pairs", {**result, **about(options.jobs)}, options.out))


if __name__ == "__main__":
    main()
