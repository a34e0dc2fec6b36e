"""Averages of language models: in weights (a soup), and of their predictions (a geometric mixture).

Wortsman et al. 2022, arXiv 2203.05482. Checkpoints of one pre-trained parent often lie in one basin of the loss, where
the average of their weights is as good as each of them or better; of unrelated models it is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.lm.model import LanguageModel, load_model


def soup_weights(count: int, alpha: float | None = None) -> list[float]:
    """Weights of `count` checkpoints: alpha in [0, 1] for the first and the rest evenly; None: all alike."""
    if count < 2 or (alpha is not None and not 0 <= alpha <= 1):
        raise TelosError(
            "a soup's checkpoints or alpha are out of range",
            expected="two checkpoints or more, alpha in [0, 1] or None",
            got=f"{count} checkpoints, alpha={alpha}",
        )
    first = 1 / count if alpha is None else alpha
    return [first, *[(1 - first) / (count - 1)] * (count - 1)]


@torch.no_grad()
def soup(checkpoints: Sequence[Any], alpha: float | None = None, device: torch.device | str = "cpu") -> LanguageModel:
    """The weighted average of checkpoints, parameter by parameter, as a frozen model.

    Sums are taken in float64 and stored in the first one's type. Floating buffers are averaged like parameters, others
    are the first one's. Adapters are folded into the weights before: factors A and B do not average to the average of
    their products. Nothing that is given is changed. Save it with `LanguagePolicy(soup(...)).save(folder)`.

    Args:
        checkpoints: two or more, each a folder, a name, a LanguageModel or a language product.
        alpha: weight of the first, in [0, 1]; the rest share what is left. None: all alike.

    Raises:
        TelosError: fewer than two; other architectures, shapes or vocabularies; alpha out of range.
    """
    weights = soup_weights(len(checkpoints), alpha)
    models = [load_model(checkpoint, device) for checkpoint in checkpoints]
    models = [model.merged() if model.adapted else model for model in models]
    averaged = models[0].frozen()
    states = [model.network.state_dict() for model in models]
    for number, (model, state) in enumerate(zip(models, states, strict=True)):
        differs = [name for name in {**states[0], **state} if shape(states[0], name) != shape(state, name)]
        if differs or model.tokenizer.get_vocab() != models[0].tokenizer.get_vocab():
            raise TelosError(
                f"checkpoint {number + 1} of the soup does not match the first",
                expected="the same architecture and vocabulary: fine-tuned from one pre-trained model",
                got=f"another shape of {differs[0]}" if differs else "another vocabulary",
                fix="fine-tune both from one parent",
            )
    for name, target in averaged.network.state_dict().items():
        if target.is_floating_point():
            target.copy_(sum(weight * state[name].double() for weight, state in zip(weights, states, strict=True)))
    return LanguageModel(averaged.network, averaged.tokenizer)


def shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    """The shape of a tensor, None where it is missing."""
    return state[name].shape if name in state else None


@dataclass(eq=False)
class GeometricMixture:
    """The normalised geometric mean of models' next-token distributions: a frozen reference in place of a soup.

        log p(y_t) = sum_i w_i log pi_i(y_t) - log Z_t

    It has what log-probs and `sample` ask of a LanguageModel. It costs a pass through every model.

    Args:
        models: of one vocabulary (tokenizer and end token are the first one's); weights: sum to 1.
    """

    models: Sequence[LanguageModel]
    weights: Sequence[float]

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    @property
    def causal(self) -> Any:
        """The first model's, for sizes."""
        return self.models[0].causal

    @property
    def tokenizer(self) -> Any:
        return self.models[0].tokenizer

    @property
    def eos_id(self) -> int:
        return self.models[0].eos_id

    @property
    def context(self) -> int:
        """Longest sequence in tokens that every model takes."""
        return min(model.context for model in self.models)

    def cache(self, length: int) -> list[Any]:
        """One of each model."""
        return [model.cache(length) for model in self.models]

    def hidden(self, tokens: Tensor, past_key_values: Sequence[Any] | None = None, **kwargs: Any) -> Tensor:
        """(B, T, sum of D) the models' last hidden states side by side; the caches are those of `cache`."""
        if past_key_values is None:
            return torch.cat([model.hidden(tokens, **kwargs) for model in self.models], -1)
        pairs = zip(self.models, past_key_values, strict=True)
        return torch.cat([model.hidden(tokens, past_key_values=own, **kwargs) for model, own in pairs], -1)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., V) log-probabilities up to a constant a row."""
        sizes = [model.causal.config.hidden_size for model in self.models]
        parts = zip(self.models, self.weights, hidden.split(sizes, -1), strict=True)
        return torch.stack([weight * model.head(part).log_softmax(-1) for model, weight, part in parts]).sum(0)
