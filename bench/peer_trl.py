"""Worker: TRL's DPOTrainer on the pairs of pairs.py; only its training loop is timed, after reference log-probs.

peer_trl.py            works on demand, BATCHES of BATCH pairs a round
peer_trl.py grouped    the same, pairs of like length together, as its best configuration
peer_trl.py losses     prints the losses of CHECKED_STEPS updates on the pairs in their order
"""

import json
import sys
import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

import pairs
from pairs import model_folder, rows
from serve import Gate

OPTIONS = {
    "": {},
    "grouped": {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False},
    "losses": {
        "train_sampling_strategy": "sequential", "per_device_train_batch_size": pairs.CHECKED_BATCH,
        "learning_rate": pairs.CHECKED_RATE, "max_steps": pairs.CHECKED_STEPS,
    },
}  # fmt: skip


class OnDemand(TrainerCallback):
    """Holds the loop after every pairs.BATCHES steps until there is a line on standard input."""

    gate = Gate("trl", "torch", "transformers", pairs=pairs.BATCH * pairs.BATCHES)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % pairs.BATCHES == 0:
            self.gate()


class Recorded(DPOTrainer):
    """Keeps the losses as they are; the trainer's own log rounds them."""

    losses: list[float] = []

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(float(loss.detach()))
        return loss


mode = sys.argv[1] if len(sys.argv) > 1 else ""
folder = model_folder()
options = {
    "output_dir": tempfile.mkdtemp(prefix="telos-bench-"),
    "beta": pairs.BETA,
    "learning_rate": pairs.LEARNING_RATE,
    "max_grad_norm": pairs.LARGEST_NORM,
    "max_length": 1024,
    "per_device_train_batch_size": pairs.BATCH,
    "max_steps": 100_000,
    "lr_scheduler_type": "constant",
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "precompute_ref_log_probs": True,
    "disable_tqdm": True,
}
table = rows(pairs.CHECKED_STEPS * pairs.CHECKED_BATCH if mode == "losses" else pairs.BATCH * pairs.BATCHES)
if mode == "grouped":
    table = [row | {"length": sum(len(text.split()) for text in row.values())} for row in table]
trainer = (Recorded if mode == "losses" else DPOTrainer)(
    model=AutoModelForCausalLM.from_pretrained(folder),
    args=DPOConfig(**(options | OPTIONS[mode])),
    train_dataset=Dataset.from_list(table),
    processing_class=AutoTokenizer.from_pretrained(folder),
    callbacks=[] if mode == "losses" else [OnDemand()],
)
trainer.train()
print(json.dumps(Recorded.losses))
