"""Worker: TRL's DPOTrainer on the same pairs; only its training loop is timed, after reference log-probs."""

import resource
import sys
import tempfile
import time

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from pairs import BATCH, BATCHES, BETA, LEARNING_RATE, WARM, model_folder, rows

folder = model_folder()


class OnDemand(TrainerCallback):
    """Holds the loop until there is a line on standard input, lets it do BATCHES steps, and prints their seconds."""

    start = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= WARM and (state.global_step - WARM) % BATCHES == 0:
            if state.global_step == WARM:
                print("ready", flush=True)
            if not sys.stdin.readline():
                sys.exit()
            self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > WARM and (state.global_step - WARM) % BATCHES == 0:
            seconds = time.perf_counter() - self.start
            print("took", seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


config = DPOConfig(
    output_dir=tempfile.mkdtemp(prefix="telos-bench-"),
    beta=BETA,
    learning_rate=LEARNING_RATE,
    max_length=1024,
    per_device_train_batch_size=BATCH,
    max_steps=100_000,
    lr_scheduler_type="constant",
    report_to=[],
    save_strategy="no",
    logging_strategy="no",
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    precompute_ref_log_probs=True,
    disable_tqdm=True,
)
DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder),
    args=config,
    train_dataset=Dataset.from_list(rows()),
    processing_class=AutoTokenizer.from_pretrained(folder),
    callbacks=[OnDemand()],
).train()
