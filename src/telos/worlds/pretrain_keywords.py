"""Pretrains the language models of the keywords world: `python -m telos.worlds.pretrain_keywords OUT [--seeds 0 1 2]`.

OUT/lm0, lm1, ... become transformers folders, as shipped in `keyword_models`: Llamas of two layers, width 48, 4 heads,
tied embeddings, trained in float32 and stored in float16 (0.12 MB each). Training: AdamW 2e-3 with linear decay, 1500
steps of 64 out of 30,000 examples, cross-entropy of the completion and its <eos>. A folder is a function of the seed,
the thread count (1) and the versions of the libraries.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from telos.core.errors import TelosError
from telos.core.files import folder_atomic
from telos.core.rng import Rng
from telos.lm.model import seeded, transformers
from telos.worlds import keywords

EXAMPLES, STEPS, BATCH, LEARNING_RATE, WIDTH = 30_000, 1500, 64, 2e-3, 48
PROMPT_TOKENS = 9
MAX_POSITIONS = 32
IGNORED = -100


def build_tokenizer() -> Any:
    """Words in pieces, as the vocabulary has them; <bos> in front; an unknown word is an error."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import WordPiece as Joined
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    ids = {word: i for i, word in enumerate(keywords.vocabulary())}
    tokenizer = Tokenizer(WordPiece(ids))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.decoder = Joined(cleanup=False)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{keywords.BOS} $A", special_tokens=[(keywords.BOS, ids[keywords.BOS])]
    )
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=keywords.PAD,
        bos_token=keywords.BOS,
        eos_token=keywords.EOS,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(rng: Rng) -> Any:
    """A Llama with random weights."""
    ids = {word: i for i, word in enumerate(keywords.vocabulary())}
    config = transformers().LlamaConfig(
        vocab_size=len(ids),
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 11 // 4,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=ids[keywords.PAD],
        bos_token_id=ids[keywords.BOS],
        eos_token_id=ids[keywords.EOS],
    )
    with seeded(rng):
        return transformers().LlamaForCausalLM(config)


def pretrain(
    seed: int, steps: int = STEPS, examples: int = EXAMPLES, followed: float = keywords.FOLLOWED
) -> tuple[Any, Any]:
    """The trained model in evaluation mode, and its tokenizer."""
    streams = Rng(seed).at("pretrain_keywords")
    tokenizer, model = build_tokenizer(), build_model(streams.at("weights"))
    prompts, completions = keywords.corpus(examples, streams.at("corpus").numpy(), followed)
    rows = tokenizer([f"{p} {c} {keywords.EOS}" for p, c in zip(prompts, completions, strict=True)])["input_ids"]
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, IGNORED)
    draw = streams.at("batch").numpy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 1.1 - step / steps)
        batch = tokens[torch.from_numpy(draw.integers(len(tokens), size=BATCH))]
        # Padding lies on the right of a causal model, so no attention mask is needed.
        logits = model(input_ids=batch[:, :-1].clamp(min=0)).logits[:, PROMPT_TOKENS - 1 :]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, PROMPT_TOKENS:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"seed {seed}, step {step + 1}/{steps}: {loss.item():.4f} nats a token", flush=True)
    return model.eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the language models of the keywords world.")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.out.exists():
        raise TelosError("output folder", expected="a path that does not exist", got=str(options.out), fix="remove it")
    torch.set_num_threads(1)
    with folder_atomic(options.out) as folder:
        for seed in options.seeds:
            model, tokenizer = pretrain(seed)
            model.half().save_pretrained(folder / f"lm{seed}")
            tokenizer.save_pretrained(folder / f"lm{seed}")


if __name__ == "__main__":
    main()
