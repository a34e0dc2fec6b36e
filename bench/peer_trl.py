"""Worker: TRL's DPOTrainer on the same pairs; only its training loop is timed, after reference log-probs."""

import tempfile
import time

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from pairs import BATCH, BATCHES, BETA, LEARNING_RATE, model_folder, rows
from serve import serve

folder = model_folder()
data = Dataset.from_list(rows())
tokenizer = AutoTokenizer.from_pretrained(folder)


class Clock(TrainerCallback):
    """Seconds between the first step's beginning and the last one's end."""

    start = end = 0.0

    def on_train_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_train_end(self, *args, **kwargs):
        self.end = time.perf_counter()


def work() -> float:
    clock = Clock()
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="telos-bench-"), beta=BETA, learning_rate=LEARNING_RATE, max_length=1024,
        per_device_train_batch_size=BATCH, max_steps=BATCHES, lr_scheduler_type="constant", report_to=[],
        save_strategy="no", logging_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        precompute_ref_log_probs=True, disable_tqdm=True, train_sampling_strategy="group_by_length",
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder), args=config, train_dataset=data, processing_class=tokenizer,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    return clock.end - clock.start


work()
serve(work)
