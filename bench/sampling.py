"""Workers: 64 tokens for each of several prompts, sampled at temperature 1, ids in and texts out.

sampling.py MODEL BATCH telos       by telos, with compiled steps
sampling.py MODEL BATCH generate    by transformers' generate, as it is
sampling.py MODEL BATCH compiled    by generate with a static cache and compiled steps, its best way on a CPU
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CompileConfig

from ours import gate
from pairs import NEW_TOKENS, model_folder
from serve import serve
from telos.core.numerics import preset, using
from telos.core.rng import Rng
from telos.lm.model import LanguageModel, load_model
from telos.lm.products import LanguagePolicy

MODELS = {"tiny": lambda: "telos:stories260k", "llama": model_folder}


def everywhere() -> CompileConfig:
    """transformers compiles on GPUs only, unless this is set."""
    config = CompileConfig()
    config._compile_all_devices = True  # type: ignore[assignment]
    return config


OPTIONS: dict[str, dict[str, Any]] = {
    "generate": {},
    "compiled": {"cache_implementation": "static", "compile_config": everywhere()},
}


def prompts(model: LanguageModel, count: int) -> list[np.ndarray]:
    """8 to 32 random ids each, no special ones among them."""
    draw = Rng(0).numpy()
    return [draw.integers(3, model.causal.config.vocab_size, draw.integers(8, 33)) for _ in range(count)]


def by_telos(model: LanguageModel, rows: list[np.ndarray]) -> Callable[[], None]:
    """A round of work."""
    policy, rng = LanguagePolicy(model), Rng(0).torch()
    return lambda: policy.generate(rows, rng=rng, max_new_tokens=NEW_TOKENS).texts  # type: ignore[return-value]


def generated(model: LanguageModel, rows: list[np.ndarray], **options: Any) -> Tensor:
    """(B, N) ids that `generate` adds to the prompts, padded on the left; the distribution is the model's own."""
    pad = model.tokenizer.pad_token_id
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), model.eos_id if pad is None else pad)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.from_numpy(row)
        mask[place, width - len(row) :] = 1
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW_TOKENS, "pad_token_id": model.eos_id, **options}
    return model.causal.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]  # type: ignore[operator]


def by_generate(model: LanguageModel, rows: list[np.ndarray], **options: Any) -> Callable[[], None]:
    """A round of work."""
    torch.manual_seed(0)
    return lambda: model.tokenizer.batch_decode(generated(model, rows, **options), skip_special_tokens=True)


def main() -> None:
    name, batch, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    model = load_model(MODELS[name]())
    rows = prompts(model, batch)
    work = by_telos(model, rows) if way == "telos" else by_generate(model, rows, **OPTIONS[way])
    with using(preset("compiled")):
        serve(work, gate("transformers", tokens=batch * NEW_TOKENS))


if __name__ == "__main__":
    main()
