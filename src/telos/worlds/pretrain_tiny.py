"""Pretrains the language model of TinySent: `python -m telos.worlds.pretrain_tiny OUT [--large] [--seed N]`.

OUT becomes a transformers folder. Without flags it is the model shipped in `telos/lm/bundled/tiny`: a Llama of two
layers, width 64, 4 heads, 0.11 M parameters, float32; `--large` has four layers of width 128. Training: AdamW 1e-3,
1500 steps of 128 out of 20,000 sentences, cross-entropy of the completion and its <eos>; the prompt is not in the
loss, because it is always given. The folder is a function of the seed, the threads (2) and the libraries' versions.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from telos.core.errors import TelosError
from telos.core.files import folder_atomic
from telos.core.rng import Rng
from telos.worlds import tiny_sent

SENTENCES, STEPS, BATCH, LEARNING_RATE = 20_000, 1500, 128, 1e-3
MAX_POSITIONS = 64
PROMPT_TOKENS = 2
IGNORED = -100


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; <bos> in front; decoding joins words with single spaces; an unknown word is an error."""
    ids = {word: i for i, word in enumerate(tiny_sent.vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{tiny_sent.BOS} $A",
        pair=f"{tiny_sent.BOS} $A $B",
        special_tokens=[(tiny_sent.BOS, ids[tiny_sent.BOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tiny_sent.PAD,
        bos_token=tiny_sent.BOS,
        eos_token=tiny_sent.EOS,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(large: bool, generator: torch.Generator) -> LlamaForCausalLM:
    """Random weights N(0, 0.02^2) from `generator`, norms at one."""
    ids = {word: i for i, word in enumerate(tiny_sent.vocabulary())}
    specials: dict[str, Any] = {
        "pad_token_id": ids[tiny_sent.PAD],
        "bos_token_id": ids[tiny_sent.BOS],
        "eos_token_id": ids[tiny_sent.EOS],
    }
    width = 128 if large else 64
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=4 if large else 2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        # A goal token may copy the embedding of <bos> without a change of the output distribution.
        tie_word_embeddings=False,
        dtype="float32",
        **specials,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
    # top_k=0 undoes the library's default of 50: samples come from the full softmax.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tiny_sent.CONTEXT - PROMPT_TOKENS,
        **specials,
    )
    return model


def encode(tokenizer: PreTrainedTokenizerFast, prompts: list[str], completions: list[str]) -> torch.Tensor:
    """(n, longest) ids of <bos> prompt words <eos>, padded on the right with IGNORED."""
    texts = [f"{prompt} {completion} {tiny_sent.EOS}" for prompt, completion in zip(prompts, completions, strict=True)]
    rows = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def completion_loss(model: LlamaForCausalLM, tokens: torch.Tensor, pad_id: int) -> torch.Tensor:
    """Mean cross-entropy in nats over the tokens after the prompt; `tokens` as `encode` gives them."""
    # Padding lies on the right of a causal model, so no attention mask is needed.
    inputs = tokens.masked_fill(tokens == IGNORED, pad_id)
    logits = model(input_ids=inputs[:, :-1]).logits[:, PROMPT_TOKENS - 1 :]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, PROMPT_TOKENS:].flatten(), ignore_index=IGNORED)


def pretrain(
    large: bool, seed: int, steps: int = STEPS, corpus: int = SENTENCES
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained model in evaluation mode and its tokenizer; `corpus` is the number of sentences drawn."""
    streams = Rng(seed).at("pretrain_tiny")
    batch_rng = streams.at("batch").numpy()
    tokenizer = build_tokenizer()
    model = build_model(large, streams.at("weights").torch())
    pad_id = tiny_sent.vocabulary().index(tiny_sent.PAD)
    tokens = encode(tokenizer, *tiny_sent.sentences(corpus, streams.at("corpus").numpy()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for step in range(1, steps + 1):
        rows = torch.from_numpy(batch_rng.integers(len(tokens), size=BATCH))
        loss = completion_loss(model, tokens[rows], pad_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}/{steps}: {loss.item():.4f} nats a token")
    return model.eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the TinySent language model.")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--large", action="store_true", help="4 layers of width 128 in place of 2 of width 64")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        raise TelosError("output folder", expected="a path that does not exist", got=str(options.out), fix="remove it")
    torch.set_num_threads(2)
    model, tokenizer = pretrain(options.large, options.seed)
    with folder_atomic(options.out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
