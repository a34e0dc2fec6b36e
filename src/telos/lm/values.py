"""Value functions over tokens: a language model's body with one linear value at each place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.lm.model import LanguageModel
from telos.lm.products import RewardScorer
from telos.lm.tokens import Sequences


def critic_network(spec: Spec, model: LanguageModel) -> nn.Module:
    """A trainable critic: a copy of the given reward model's network (`critic`), or the policy's body with values 0.

    Raises:
        TelosError: `critic` is no reward model, or has another vocabulary.
    """
    given: Any = spec.given.get("critic")
    if isinstance(given, str):
        from telos.core.products import load_product

        given = load_product(given, spec.device)
    if given is None:
        return RewardScorer.from_language_model(model, spec.rng.at("critic")).network
    if not isinstance(given, RewardScorer):
        raise TelosError(
            "'critic' is no reward model", got=type(given).__name__, fix="train one: telos fit reward_model"
        )
    if given.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise TelosError("the critic has another vocabulary than the model", fix="use models of the same family")
    return copy.deepcopy(given.network).to(spec.device).requires_grad_(True)


def token_values(network: Any, sequences: Sequences) -> Tensor:
    """(B, T) float32: at completion tokens the value of what stands before them, 0 elsewhere; with gradient."""
    hidden = network.base_model(input_ids=sequences.tokens).last_hidden_state
    values = network.score(hidden)[..., 0].float()
    return torch.nn.functional.pad(values[:, :-1], (1, 0)) * sequences.mask
