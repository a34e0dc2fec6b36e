"""Worker: DPO of telos on the pairs of pairs.py by `fit`, which computes the reference's log-probs beforehand.

dpo.py           works on demand, BATCHES of BATCH pairs a round
dpo.py losses    prints the losses of CHECKED_STEPS updates on the pairs in their order
"""

import json
import sys

import numpy as np
import torch

import pairs
import telos
from ours import gate
from pairs import model_folder, rows
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.methods.preferences.dpo import DPO


def method(batch_size: int, learning_rate: float) -> DPO:
    options = {"beta": pairs.BETA, "max_grad_norm": pairs.LARGEST_NORM, "warmup_steps": 0, "max_length": 1024}
    return DPO(batch_size=batch_size, learning_rate=learning_rate, **options)


def losses() -> list[float]:
    """Of the same batches as the peer's, in the same order."""
    size, steps, rng = pairs.CHECKED_BATCH, pairs.CHECKED_STEPS, Rng(0)
    checked, data = method(size, pairs.CHECKED_RATE), preferences(steps * size)
    spec = checked.prepare(Spec(data, {"model": model_folder()}, steps, torch.device("cpu"), rng))
    learner = checked.learner(spec, rng)
    batches = [spec.data.batch(np.arange(i, i + size)) for i in range(0, steps * size, size)]
    return [float(learner.update(batch, rng)["loss"]) for batch in batches]


def preferences(count: int) -> telos.Preferences:
    """The first pairs."""
    return telos.Preferences(*([row[name] for row in rows(count)] for name in ("prompt", "chosen", "rejected")))


if sys.argv[1:] == ["losses"]:
    print(json.dumps(losses()))
else:
    epoch = pairs.BATCH * pairs.BATCHES
    method(pairs.BATCH, pairs.LEARNING_RATE).fit(
        preferences(epoch), model=model_folder(), steps=100_000, device="cpu",
        evaluate=gate("transformers", pairs=epoch), evaluate_every=pairs.BATCHES,
    )  # fmt: skip
