"""Networks that fast paths serve, and networks that they leave to themselves."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from lm_toys import bpe, llama, tiny

from telos.core.rng import Rng
from telos.lm.model import STORIES, LanguageModel, add_lora, load_model, seeded

SMALL = {
    "vocab_size": 330, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


def made(kind: str, **options: Any) -> LanguageModel:
    """A random network of a kind that transformers has."""
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **options})
    with seeded(Rng(3)):
        network = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # which begin at 0 and 1, where a wrong place would not be seen
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=Rng(5).at(name).torch()))
    return LanguageModel(network, bpe())


MODELS = {
    "llama": lambda: made("Llama"),
    "one head each": lambda: made("Llama", num_key_value_heads=4),
    "tied": lambda: made("Llama", tie_word_embeddings=True),
    "long heads": lambda: made("Llama", head_dim=20),
    "scaled turns": lambda: made("Llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    "mistral": lambda: made("Mistral", sliding_window=None),
    "qwen2": lambda: made("Qwen2"),
    "qwen3": lambda: made("Qwen3", head_dim=8),
    "stories": lambda: load_model(STORIES),
    "tiny": tiny,
}


def hooked() -> LanguageModel:
    model = made("Llama")
    model.causal.model.layers[0].register_forward_hook(lambda *_: None)
    return model


REFUSED = {
    "adapters": lambda: add_lora(made("Llama"), 2, Rng(0)),
    "a hook": hooked,
    "another class": lambda: made("Gemma", head_dim=8),
    "half precision": lambda: LanguageModel(llama().bfloat16(), bpe()),
    "a window": lambda: made("Mistral", sliding_window=4),
    "another activation": lambda: made("Llama", hidden_act="gelu"),
    "turns that depend on the length": lambda: made(
        "Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
}
