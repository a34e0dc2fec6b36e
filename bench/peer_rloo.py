"""Worker: rounds of TRL's RLOOTrainer: sample, score, one optimisation step; `static`: with a static cache."""

import sys
import tempfile

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from pairs import KL, LARGEST_NORM, LEARNING_RATE, NEW_TOKENS, PROMPTS, SAMPLES, model_folder, prompts, reward
from serve import Gate


class OnDemand(TrainerCallback):
    """Holds the loop after every step until there is a line on standard input."""

    gate = Gate("trl", "torch", "transformers", rounds=1)

    def on_step_end(self, args, state, control, **kwargs):
        self.gate()


def purpose(completions, **columns):
    return [reward(completion) for completion in completions]


folder = model_folder()
config = RLOOConfig(
    output_dir=tempfile.mkdtemp(prefix="telos-bench-"),
    beta=KL,
    learning_rate=LEARNING_RATE,
    max_grad_norm=LARGEST_NORM,
    num_generations=SAMPLES,
    per_device_train_batch_size=PROMPTS * SAMPLES,
    max_completion_length=NEW_TOKENS,
    temperature=1.0,
    cache_implementation=sys.argv[1] if len(sys.argv) > 1 else None,
    max_steps=100_000,
    lr_scheduler_type="constant",
    report_to=[],
    save_strategy="no",
    logging_strategy="no",
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    disable_tqdm=True,
)
RLOOTrainer(
    model=folder,
    reward_funcs=purpose,
    args=config,
    train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(4 * PROMPTS)]),
    processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
    callbacks=[OnDemand()],
).train()
