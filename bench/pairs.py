"""The common work of the language rows: a 4.2 M-parameter Llama, 2,048 words, texts with the lengths of real dialogues.

lengths.json holds (prompt, chosen, rejected) in words of 640 pairs of anthropics/hh-rlhf (harmless, test).
"""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS, BATCH, BATCHES, LEARNING_RATE, BETA, LARGEST_NORM = 2048, 16, 8, 1e-5, 0.1, 1.0
"""A round of DPO is an epoch, so that rounds are alike: BATCHES batches of BATCH pairs."""
CHECKED_STEPS, CHECKED_BATCH, CHECKED_RATE = 50, 4, 1e-4
"""Of `dpo/losses`: the first 200 pairs in their order."""
PROMPTS, SAMPLES, NEW_TOKENS, KL = 16, 4, 64, 0.05
"""Of a round of online RL: prompts, completions of each, tokens of each, coefficient of the KL."""


def rows(count: int) -> list[dict[str, str]]:
    """The first `count` pairs, of random words."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{rng.randrange(3, WORDS)}" for _ in range(words))

    lengths = json.loads((Path(__file__).parent / "lengths.json").read_text())
    return [{"prompt": text(p), "chosen": " " + text(c), "rejected": " " + text(r)} for p, c, r in lengths[:count]]


def prompts(count: int) -> list[str]:
    """Texts of 8 to 32 random words."""
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(3, WORDS)}" for _ in range(rng.randint(8, 32))) for _ in range(count)]


def reward(text: str) -> float:
    """A cheap one: how many different words there are."""
    return float(len(set(text.split())))


def model_folder(words: int = WORDS, **options) -> str:
    """A transformers folder with random weights, the same in every worker; `options` change the LlamaConfig."""
    folder = tempfile.mkdtemp(prefix="telos-bench-")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": words, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 1024, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(shape | options))).save_pretrained(folder)
    return folder
