"""Products: what `fit` returns. They act, generate, score; they save and load alike.

A product is a folder: `config.json` (kind, constructor arguments, provenance) and `model.safetensors` (weights,
normalisers, and a probe: outputs on fixed inputs, computed again by `load_product`).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import telos
from telos.core.errors import TelosError
from telos.core.files import folder_atomic, read_json, write_json
from telos.core.registry import product_class

PROBE = "probe."


@dataclass(frozen=True)
class Act:
    """What a policy does for a batch: actions (B, A) or (B,), its next state, log-probs (B,) where it has them."""

    action: Tensor
    state: Any = None
    log_prob: Tensor | None = None


@dataclass(frozen=True)
class Completions:
    """Sampled texts.

    Args:
        texts: N decoded completions, in the order prompt 0's n samples, prompt 1's n samples, ...
        prompts: N prompt texts, each repeated n times.
        tokens: (N, T) prompt and completion, right-padded.
        lengths: (N,) tokens in all; boundaries: (N,) index of the first completion token.
        log_probs: (N, T) the sampler's own log-probs of each completion token under the transform it sampled
            with, 0 elsewhere.
        finished: (N,) bool: ended with the end token.
        transform: the sampling transform (temperature, top_k, top_p).
    """

    texts: list[str]
    prompts: list[str]
    tokens: Tensor
    lengths: Tensor
    boundaries: Tensor
    log_probs: Tensor
    finished: Tensor
    transform: dict[str, float] = field(default_factory=dict)


class Product(nn.Module, abc.ABC):
    """Something that serves a purpose. Final subclasses are built from JSON-able constructor arguments."""

    provenance: dict[str, Any]
    """Method, options, data, seed, versions: written into config.json."""

    def __init__(self) -> None:
        super().__init__()
        self.provenance = {}

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The inverse of `config`; weights come afterwards."""
        return cls(**config)

    @abc.abstractmethod
    def probe(self) -> dict[str, Tensor]:
        """Outputs on fixed inputs, deterministic: what `load_product` re-checks."""

    def save(self, path: str | Path) -> Path:
        """Writes the folder `path`, whole or not at all.

        Raises:
            TelosError: no permission, full disk.
        """
        with folder_atomic(path) as folder:
            self.write(folder)
        return Path(path)

    def write(self, folder: Path) -> None:
        """Writes the product's files into an existing, temporary folder."""
        header = {
            "telos": telos.__version__,
            "kind": type(self).__name__,
            "config": self.config(),
            "provenance": self.provenance,
        }
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        with torch.no_grad():
            tensors |= {PROBE + name: tensor.detach().cpu().contiguous() for name, tensor in self.probe().items()}
        save_file(tensors, folder / "model.safetensors")
        write_json(folder / "config.json", header)

    @classmethod
    def read(cls, folder: Path, header: dict[str, Any]) -> Self:
        """The inverse of `write`; strict about keys, and the probe must come out as it did."""
        product = cls.from_config(header["config"])
        tensors = load_file(folder / "model.safetensors")
        probe = {name.removeprefix(PROBE): tensors.pop(name) for name in list(tensors) if name.startswith(PROBE)}
        try:
            product.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise TelosError(f"{folder}: the weights do not fit the configuration", got=str(error)) from error
        product.eval()
        product.provenance = header["provenance"]
        check_probe(product, probe, folder)
        return product


def check_probe(product: Product, saved: dict[str, Tensor], folder: Path, tolerance: float = 1e-4) -> None:
    """Raises TelosError unless the product computes on its probe what it computed when it was saved."""
    with torch.no_grad():
        now = product.probe()
    for name, value in saved.items():
        got = now.get(name)
        if (
            got is None
            or got.shape != value.shape
            or not torch.allclose(got.cpu().float(), value.float(), rtol=tolerance, atol=tolerance)
        ):
            raise TelosError(
                f"{folder}: the loaded product does not reproduce its probe '{name}'",
                expected="the outputs it had when it was saved",
                fix="the files were changed, or this version computes otherwise: save the product again",
            )


def load_product(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """Loads any saved product, whatever its kind, and re-checks its probe.

    Raises:
        TelosError: no such folder, not a product, weights that do not fit, a probe that differs.
    """
    folder = Path(path)
    header_file = next((folder / name for name in ("telos.json", "config.json") if (folder / name).is_file()), None)
    if header_file is None:
        inside = folder / "product"
        if inside.is_dir():
            return load_product(inside, device)
        raise TelosError(
            f"{folder} is not a product",
            expected="a folder with config.json and model.safetensors",
            fix="give the folder that `save` or `telos fit --out` wrote",
        )
    header = read_json(header_file)
    if not isinstance(header, dict) or "kind" not in header or "config" not in header:
        raise TelosError(
            f"{folder} was not written by telos",
            expected=f"'kind' and 'config' in {header_file.name}",
            fix="a plain transformers folder is a model, not a product: pass it as --model",
        )
    try:
        product = product_class(header["kind"]).read(folder, header)
    except (SafetensorError, OSError) as error:
        raise TelosError(f"{folder} cannot be read", got=str(error), fix="save the product again") from error
    return product.to(device).eval()


class Policy(Product):
    """Acts in an environment. Batched and stateless: state is passed in and out."""

    kind: ClassVar[str] = "Policy"

    @abc.abstractmethod
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: Any = None,
        mask: Any = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions for a batch of raw (un-normalised) observations (B, O), within the action space.

        Args:
            rng: needed where actions are drawn; `explore` adds the method's exploration.
        """

    def log_prob(self, obs: Any, action: Tensor, *, goal: Any = None, mask: Any = None) -> Tensor:
        """(B,) log-probability or log-density of given actions: what off-policy evaluation needs.

        Raises:
            TelosError: the policy is deterministic, or its density is not known.
        """
        raise TelosError(f"a {type(self).__name__} has no action probabilities")


class Generator(Product):
    """Produces texts for prompts."""

    kind: ClassVar[str] = "Generator"

    @abc.abstractmethod
    def generate(
        self, prompts: list[Any], *, n: int = 1, rng: torch.Generator | None = None, **sampling: Any
    ) -> Completions:
        """`n` completions a prompt; `sampling` is the transform (temperature, top_k, top_p, max_new_tokens)."""


class Scorer(Product):
    """Scores completions: reward models."""

    kind: ClassVar[str] = "Scorer"

    @abc.abstractmethod
    def score(self, prompts: list[Any], completions: list[Any]) -> Tensor:
        """(N,) float32 scores; higher is better."""


class Density(Product):
    """A distribution over structured objects."""

    kind: ClassVar[str] = "Density"

    @abc.abstractmethod
    def log_prob(self, items: Any) -> Tensor:
        """(N,) log-densities."""

    @abc.abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> Any:
        """`n` items."""


class Recogniser(Product):
    """Predicts a label, a goal, a type."""

    kind: ClassVar[str] = "Recogniser"

    @abc.abstractmethod
    def predict(self, items: Any) -> Tensor:
        """(N, ...) scores of each label."""


class Report(Product):
    """Measures and tables, `values` by name as JSON: no weights."""

    kind: ClassVar[str] = "Report"

    def __init__(self, values: dict[str, Any]):
        super().__init__()
        self.values = values

    def config(self) -> dict[str, Any]:
        return {"values": self.values}

    def probe(self) -> dict[str, Tensor]:
        numbers = [value for _, value in sorted(self.values.items()) if isinstance(value, int | float)]
        return {"numbers": torch.tensor(numbers, dtype=torch.float64)}
