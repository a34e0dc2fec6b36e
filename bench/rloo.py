"""Worker: rounds of RLOO in telos by `fit`: sample (with compiled steps), score, one update."""

import telos
from ours import gate
from pairs import KL, LARGEST_NORM, LEARNING_RATE, NEW_TOKENS, PROMPTS, SAMPLES, model_folder, prompts, reward
from telos.core.numerics import preset, using


def purpose(prompts: list[str], completions: list[str]) -> list[float]:
    return [reward(completion) for completion in completions]


method = telos.RLOO(
    beta=KL, samples_per_prompt=SAMPLES, prompts_per_batch=PROMPTS, max_new_tokens=NEW_TOKENS,
    learning_rate=LEARNING_RATE, max_grad_norm=LARGEST_NORM,
)  # fmt: skip
with using(preset("compiled")):
    work = gate("transformers", rounds=1)
    method.fit(
        telos.Prompts(prompts(4 * PROMPTS)), model=model_folder(), purpose=purpose, steps=100_000, device="cpu",
        evaluate=work, evaluate_every=1,
    )  # fmt: skip
