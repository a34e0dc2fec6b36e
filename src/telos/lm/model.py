"""Language models: loading, copying, adapters. Any causal model that transformers loads."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.rng import Rng

TINY, STORIES = "telos:tiny", "telos:stories260k"
"""The bundled models: of the TinySent world, and a small one of children's stories."""
BUNDLED = {TINY: "tiny", STORIES: "stories260k"}


def transformers() -> Any:
    """The transformers library, quiet and offline unless a hub name is asked for.

    Raises:
        TelosError: it is not installed.
    """
    try:
        import transformers as library
    except ImportError as error:
        raise TelosError("language models need transformers", fix='pip install "telos[lm]"') from error
    library.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return library


@dataclass(eq=False)
class LanguageModel:
    """A causal language model with its tokenizer.

    Dropout is off, in training too, so that every log-prob is the same function of the parameters.

    Args:
        network: a transformers causal model (or a peft model around one).
        tokenizer: its tokenizer; only `eos_id` must exist, the pad token is never compared with.
        origin: path or name it was loaded from; None if it was made (or trained) in memory.
    """

    network: Any
    tokenizer: Any
    origin: str | None = None

    def __post_init__(self) -> None:
        self.network.eval()
        if self.tokenizer.eos_token_id is None:
            raise TelosError(
                f"the tokenizer of {self.origin or 'the model'} has no end token",
                expected="eos_token",
                fix="set tokenizer.eos_token and save the folder again",
            )

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return int(getattr(self.network.config, "max_position_embeddings", None) or 1 << 20)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def causal(self) -> Any:
        """The transformers model itself, inside adapters where there are any."""
        return self.network.get_base_model() if self.adapted else self.network

    @property
    def adapted(self) -> bool:
        """Has peft adapters."""
        return hasattr(self.network, "peft_config")

    def copy(self) -> LanguageModel:
        """A deep copy: nothing is downloaded or read again."""
        return LanguageModel(copy.deepcopy(self.network), self.tokenizer, self.origin)

    def frozen(self) -> LanguageModel:
        """A copy without gradients, as a reference."""
        other = self.copy()
        other.network.requires_grad_(False)
        return other

    def merged(self) -> LanguageModel:
        """A copy whose adapters, if any, are folded into the weights."""
        network = copy.deepcopy(self.network)
        return LanguageModel(network.merge_and_unload() if self.adapted else network, self.tokenizer)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def hidden(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """Last hidden states (B, T, D) for right-padded tokens (B, T); causality makes a mask needless."""
        return self.causal.base_model(input_ids=tokens, **kwargs).last_hidden_state

    def cache(self, length: int) -> Any:
        """An empty static cache for sequences of up to `length` tokens, for `hidden`'s past_key_values."""
        return transformers().StaticCache(config=self.causal.config, max_cache_len=length)

    def head(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) in float32, scaled and capped as the network does; `check_head` compares them."""
        return self.scaled(self.causal.get_output_embeddings()(hidden))

    def scaled(self, logits: Tensor) -> Tensor:
        """What the network does to the output of its last layer (..., V), in float32."""
        logits, config = logits.float(), self.causal.config
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scale := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = cap * torch.tanh(logits / cap)
        return logits

    @torch.no_grad()
    def check_head(self) -> LanguageModel:
        """The model itself, if `hidden` and `head` give the network's own logits, and these ignore later tokens.

        Raises:
            TelosError: another kind of head, or a network that is not causal (BERT).
        """
        tokens = torch.arange(1, 5, device=self.device)[None]
        expected = self.network(input_ids=tokens).logits[:, :3].float()
        error = (self.head(self.hidden(tokens[:, :3])) - expected).abs().max()
        tolerance = 1e-3 if self.network.dtype == torch.float32 else 3e-2
        if not error <= tolerance * expected.abs().max():
            raise TelosError(
                f"{self.origin or 'the model'} ({type(self.causal).__name__}): its logits are no known function of "
                "its last hidden states, or depend on later tokens",
                expected="a causal language model with a linear head (and at most scaling or soft-capping)",
                got=f"logits that differ by {float(error):.2g}",
                fix="use a causal model",
            )
        return self

    def to(self, device: torch.device | str) -> LanguageModel:
        self.network.to(device)
        return self


@contextlib.contextmanager
def seeded(rng: Rng) -> Iterator[None]:
    """For libraries that initialise from the global generator: seeds it inside the block, restores it after."""
    with torch.random.fork_rng():
        torch.manual_seed(rng.integer())
        yield


def load_model(source: Any, device: torch.device | str = "cpu") -> LanguageModel:
    """A language model from a folder, a hub name, a bundled one ("telos:tiny"), or objects in memory.

    Args:
        source: path or name; a LanguageModel; a product that has one (`policy.model`); (model, tokenizer).

    Raises:
        TelosError: nothing there, not a causal model, no tokenizer, no end token.
    """
    if isinstance(getattr(source, "model", None), LanguageModel):
        source = source.model
    if isinstance(source, LanguageModel):
        # Without an origin: its weights may have been trained since they were loaded.
        return LanguageModel(copy.deepcopy(source.network), source.tokenizer).to(device)
    if isinstance(source, tuple) and len(source) == 2:
        network, tokenizer = source
        return LanguageModel(copy.deepcopy(network), tokenizer).check_head().to(device)
    if not isinstance(source, str | Path):
        raise TelosError(
            "model is neither a path nor a model", got=type(source).__name__, fix="pass (model, tokenizer)"
        )
    name = str(source)
    folder = Path(__file__).parent / "bundled" / BUNDLED[name] if name in BUNDLED else Path(name)
    library = transformers()
    local = folder.is_dir()
    if local and (folder / "product").is_dir():
        folder = folder / "product"
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise TelosError(f"no such model: {name}", expected="a transformers folder", fix="check the path")
    where = str(folder) if local else name
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(where, local_files_only=local)
        if (folder / "adapter_config.json").is_file():
            network = peft().AutoPeftModelForCausalLM.from_pretrained(where, is_trainable=True, dtype=torch.float32)
        else:
            network = library.AutoModelForCausalLM.from_pretrained(where, local_files_only=local, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TelosError(
            f"no such model: {name}" if not local else f"{name} does not load as a causal language model",
            expected="a transformers folder with weights and tokenizer, or a hub name when online",
            got=reason,
            fix="check the path" if not local else "save it again with save_pretrained",
        ) from error
    return LanguageModel(network, tokenizer, name).check_head().to(device)


def peft() -> Any:
    """The peft library.

    Raises:
        TelosError: it is not installed.
    """
    try:
        import peft as library
    except ImportError as error:
        raise TelosError("LoRA adapters need peft", fix='pip install "telos[adapters]"') from error
    return library


def add_lora(model: LanguageModel, rank: int, rng: Rng) -> LanguageModel:
    """Freezes the model and adds LoRA adapters of `rank` (alpha = 2 rank, all linear layers) that start at zero."""
    library = peft()
    config = library.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with seeded(rng):
        network = library.get_peft_model(model.network, config)
    return LanguageModel(network, model.tokenizer, model.origin)
