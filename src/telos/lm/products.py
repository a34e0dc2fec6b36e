"""Products of language methods: transformers folders with a telos.json beside the model's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import telos
from telos.core.errors import TelosError
from telos.core.files import write_json
from telos.core.products import Completions, Generator, Product, Scorer, check_probe
from telos.core.rng import Rng
from telos.data.records import Demonstrations, Text
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel, load_model, seeded, transformers
from telos.lm.sample import sample
from telos.lm.tokens import Sequences, tokenise, tokenise_prompts

PROBE_FILE = "telos-probe.safetensors"


def write_folder(product: Product, network: Any, tokenizer: Any, folder: Path) -> None:
    """The transformers files (weights in safetensors, tokenizer) and telos.json with the probe."""
    network.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        save_file({k: v.cpu().contiguous() for k, v in product.probe().items()}, folder / PROBE_FILE)
    header = {
        "telos": telos.__version__,
        "kind": type(product).__name__,
        "config": product.config(),
        "provenance": product.provenance,
    }
    write_json(folder / "telos.json", header)


def probe_tokens(vocabulary: int) -> Sequences:
    """A fixed sequence of 12 tokens, the first 3 of them the prompt."""
    tokens = Rng(0).at("probe").numpy().integers(0, vocabulary, (1, 12))
    return Sequences(torch.from_numpy(tokens), torch.tensor([12]), torch.tensor([3]))


class LanguagePolicy(Generator):
    """A language model that serves a purpose. Saved as a transformers folder: transformers, vLLM and TRL load it.

    With LoRA adapters the folder holds the adapters, and loading it needs the base model where it was; adapters of a
    model that was made or trained in memory are folded into its weights when saved.
    """

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        self.network = model.network

    def config(self) -> dict[str, Any]:
        return {"adapters": self.model.adapted}

    def write(self, folder: Path) -> None:
        in_memory = self.model.adapted and self.model.origin is None
        network = self.model.merged().network if in_memory else self.model.network
        write_folder(self, network, self.model.tokenizer, folder)

    @classmethod
    def read(cls, folder: Path, header: dict[str, Any]) -> Self:
        product = cls(load_model(str(folder)))
        product.provenance = header["provenance"]
        check_probe(product, load_file(folder / PROBE_FILE), folder)
        return product

    def probe(self) -> dict[str, Tensor]:
        sequences = probe_tokens(self.model.causal.config.vocab_size).to(self.model.device)
        return {"log_probs": token_log_probs(self.model, sequences)}

    def generate(
        self, prompts: list[Any], *, n: int = 1, rng: torch.Generator | None = None, **sampling: Any
    ) -> Completions:
        """Samples `n` completions a prompt (texts, conversations, or arrays of token ids).

        Args:
            rng: required unless temperature is 0.
            sampling: max_new_tokens (64, or half the context), temperature (1), top_k (0: all), top_p (1),
                batch_size (256).

        Raises:
            TelosError: an unknown option; no generator for a random sample; a prompt that does not fit.
        """
        unknown = set(sampling) - {"max_new_tokens", "temperature", "top_k", "top_p", "batch_size"}
        if unknown:
            raise TelosError(
                f"generate has no option '{min(unknown)}'", expected="max_new_tokens, temperature, top_k, top_p"
            )
        sampling = {"max_new_tokens": min(64, self.model.context // 2), **sampling}
        if rng is None:
            if sampling.get("temperature", 1.0) > 0:
                raise TelosError(
                    "sampling needs a generator", fix="pass rng=torch.Generator().manual_seed(0), or temperature=0"
                )
            rng = torch.Generator(self.model.device)
        tokenised = bool(prompts) and isinstance(prompts[0], np.ndarray)
        ids = list(prompts) if tokenised else tokenise_prompts(self.model, prompts, sampling["max_new_tokens"])
        return sample(self.model, ids, n=n, rng=rng, **sampling)

    def log_prob(self, prompts: Sequence[Text], completions: Sequence[Text], boundary: str = "joint") -> Tensor:
        """(N,) summed log pi(completion | prompt), the end token included; `boundary` as the model was trained with."""
        from telos.lm.log_probs import reference_log_probs

        data = Demonstrations(prompts, completions)
        groups = tokenise(self.model, data, overlong="truncate", boundary=boundary, device=self.model.device)
        return reference_log_probs(self.model, groups)[:, 0]


class RewardScorer(Scorer):
    """A reward model: a language model's body with one linear score at the last token.

    Saved as a transformers sequence-classification folder with one label, as TRL has them.

    Args:
        network: a transformers ...ForSequenceClassification with num_labels=1.
        boundary: how texts became tokens in training: "separate", or anything else for texts as a whole, as far as
            there is white space between prompt and completion (see telos.lm.tokens).
        max_length: tokens of prompt and completion, as in training; None: the context.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        origin: str | None = None,
        *,
        boundary: str = "joint",
        max_length: int | None = None,
    ):
        super().__init__()
        self.network, self.tokenizer, self.origin = network.eval(), tokenizer, origin
        self.boundary, self.max_length = boundary, max_length

    @classmethod
    def from_language_model(
        cls, model: LanguageModel, rng: Rng, *, boundary: str = "joint", max_length: int | None = None
    ) -> RewardScorer:
        """The model's body with a score that starts at zero for every text."""
        import copy

        body = model.merged().network if model.adapted else model.network
        config = copy.deepcopy(body.config)
        config.num_labels, config.architectures = 1, None
        pad = model.tokenizer.pad_token_id
        # transformers reads the score at the last token that is not padding: that must be the end token.
        config.pad_token_id = None if pad == model.eos_id or (pad or 0) >= config.vocab_size else pad
        with seeded(rng):
            network = transformers().AutoModelForSequenceClassification.from_config(config)
        network.base_model.load_state_dict(body.base_model.state_dict())
        torch.nn.init.zeros_(network.score.weight)
        network.to(model.device, body.dtype)
        return cls(network, model.tokenizer, model.origin, boundary=boundary, max_length=max_length)

    @property
    def language_model(self) -> LanguageModel:
        """Body and tokenizer, for tokenising and sizes (it has no language head)."""
        return LanguageModel(self.network, self.tokenizer, self.origin)

    def config(self) -> dict[str, Any]:
        return {"boundary": self.boundary, "max_length": self.max_length}

    def write(self, folder: Path) -> None:
        write_folder(self, self.network, self.tokenizer, folder)

    @classmethod
    def read(cls, folder: Path, header: dict[str, Any]) -> Self:
        library = transformers()
        network = library.AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
        tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        product = cls(network, tokenizer, str(folder), **header["config"])
        product.provenance = header["provenance"]
        check_probe(product, load_file(folder / PROBE_FILE), folder)
        return product

    def probe(self) -> dict[str, Tensor]:
        device = next(self.network.parameters()).device
        return {"scores": self.score_tokens(probe_tokens(self.network.config.vocab_size).to(device))}

    def score_tokens(self, sequences: Sequences) -> Tensor:
        """(B,) or (B, K) scores, read at the last real token, with gradient."""
        flat = sequences.flat() if sequences.tokens.dim() == 3 else sequences
        hidden = self.network.base_model(input_ids=flat.tokens).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), flat.lengths - 1]
        return self.network.score(last)[:, 0].float().view(sequences.lengths.shape)

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """(N,) scores of whole completions (an end token is added), cut to `max_length` where they are longer."""
        device = next(self.network.parameters()).device
        groups = tokenise(
            self.language_model,
            Demonstrations(list(prompts), list(completions)),
            max_length=self.max_length,
            overlong="truncate",
            boundary="separate" if self.boundary == "separate" else "inside",
            device=device,
        )
        order = groups.lengths.argsort(kind="stable")
        result = torch.empty(len(groups))
        for start in range(0, len(order), 256):
            index = order[start : start + 256]
            result[torch.from_numpy(index)] = self.score_tokens(groups.sequences(index))[:, 0].cpu()
        return result

    @torch.no_grad()
    def score_sampled(self, completions: Completions) -> Tensor:
        """(N,) scores of sampled tokens; one that was cut off is closed with an end token, in place of its last one
        where the context is full."""
        device = next(self.network.parameters()).device
        width = min(completions.tokens.shape[1] + 1, self.language_model.context)
        tokens = torch.nn.functional.pad(completions.tokens, (0, 1))[:, :width]
        lengths = (completions.lengths + (~completions.finished).long()).clamp(max=width)
        tokens[torch.arange(len(tokens)), lengths - 1] = self.tokenizer.eos_token_id
        return self.score_tokens(Sequences(tokens, lengths, completions.boundaries).to(device)).cpu()

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """As a purpose: the same as `score`."""
        return self.score(prompts, completions)
