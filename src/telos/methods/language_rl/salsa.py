r"""SALSA: RL from a reward whose KL term refers to the weight average of two fine-tuned models, not to the policy's
start.

Chegini et al. 2024, arXiv 2411.01798. Of checkpoints fine-tuned from one pre-trained model with different seeds:

    theta_soup = alpha theta_1 + (1 - alpha) theta_2                         parameter by parameter, frozen
    max_theta  E_{y ~ pi_theta} r(x, y) - beta KL(pi_theta || pi_soup),      theta starts at theta_1

The optimum is proportional to pi_soup e^{r / beta}. At the first step the KL is positive, since the policy is theta_1
and the reference is not. The RL method is a field: any that takes a `reference` for its KL. DPO and other methods on
pairs take `reference=telos.lm.soup.soup([first, second])`, or the folder in which it was saved.

What differs from the paper and why:
- Only the abstract, the authors' page and summaries of reviews could be read: the method is determined by them, its
  constants are not.
- `anchor="mixture"` is an ablation of ours: the geometric mean of the two models' predictions in place of the average
  of their weights. For a softmax whose logits are linear in the weights both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Source, Spec
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.model import load_model
from telos.lm.soup import GeometricMixture, soup, soup_weights

PAPER = {
    "method": "SALSA",
    "title": "Soup-based Alignment Learning for Stronger Adaptation in RLHF",
    "arxiv": "2411.01798",
    "year": 2024,
    "url": "https://arxiv.org/abs/2411.01798",
    "purpose": ["reward", "preference"],
    "product": "Generator",
    "data": "two SFT checkpoints + prompts + reward",
    "summary": "RLHF anchored to the weight average of two fine-tuned models in place of the initial one, so that the "
    "policy may search wider.",
    "claim": "At KL coefficient 1, RL anchored to a soup earns more gold reward than RL anchored to its start, at a "
    "larger KL from that start, and more than RL anchored to one model fine-tuned on all the data.",
    "paper_claim": {
        "where": "abstract: MT-Bench, Arena-Hard, UltraFeedback",
        "text": "PPO with the soup as reference wins against PPO with the initial model as reference on all three "
        "benchmarks and for all three models, moves further in KL, earns more reward and does better out of "
        "distribution.",
        "value": "head-to-head win rates above 50 %; the numbers could not be read (unverified)",
        "data": "UltraChat-200k for fine-tuning, UltraFeedback for the reward model and the prompts (unverified)",
        "model": "Llama2-7B, Mistral-7B, Gemma-2B",
        "mechanism": "Two small fine-tunings overfit differently, their average does not, and the same RL from the "
        "same start is anchored to one or the other, scored by the true reward. Reward models, benchmarks and large "
        "models are not tested; RLOO stands for PPO. Reward at equal KL to the pre-trained model is measured, "
        "too: the paper does not tell a better anchor from a weaker pull.",
    },
    "equations": [
        r"\theta_{\mathrm{soup}}=\alpha\,\theta_1+(1-\alpha)\,\theta_2",
        r"\max_\theta\ \mathbb E_{y\sim\pi_\theta(\cdot\mid x)}\left[r(x,y)\right]"
        r"-\beta\,\mathrm{KL}\left(\pi_\theta(\cdot\mid x)\,\Vert\,\pi_{\theta_{\mathrm{soup}}}(\cdot\mid x)\right),"
        r"\quad\theta\leftarrow\theta_1",
        r"r_t=-\beta\log\frac{\pi_{\mathrm{old}}(y_t\mid x,y_{<t})}{\pi_{\theta_{\mathrm{soup}}}(y_t\mid x,y_{<t})}"
        r"+\mathbb 1[t=T]\,r(x,y)",
        r"\pi^*(y\mid x)\propto\pi_{\theta_{\mathrm{soup}}}(y\mid x)\,e^{r(x,y)/\beta}",
    ],
    "deviations": [
        "The paper's constants could not be read; the RL method's own defaults stand.",
        "Any method with a KL to a reference may be held in place of PPO.",
    ],
    "traps": [
        "Only checkpoints of one pre-trained parent average well: the soup's likelihood must be no worse than theirs.",
        "Adapters are merged before they are averaged, never factor by factor.",
        "An adaptive KL coefficient hides the effect, since it makes the KLs equal.",
        "The KL at the first step is not 0.",
        "A larger reward at a larger KL need not be a better anchor: look at equal KL to the pre-trained model.",
    ],
    "terms": ["model merging", "weight averaging", "WARP", "checkpoint averaging", "regularisation"],
    "usage": [
        "telos fit salsa --data prompts.jsonl --model telos:tiny --reference telos:tiny --purpose keywords:good1,good2 "
        "--steps 2 --rl.beta 0.1 --rl.max-new-tokens 16 --out runs/salsa",
        'texts, prompts, pairs = (telos.load(f"{name}.jsonl") for name in ("texts", "prompts", "pairs"))',
        'sft = lambda seed: telos.SFT(learning_rate=1e-3).fit(texts, model="telos:tiny", steps=5, seed=seed)',
        "first, second = sft(1), sft(2)",
        "method = telos.SALSA(rl=telos.RLOO(beta=0.1, max_new_tokens=16))",
        'policy = method.fit(prompts, model=first, reference=second, purpose="length", steps=2)',
        'policy.save("my-model")',
        "from telos.lm.soup import soup",
        "telos.DPO(warmup_steps=0).fit(pairs, model=first, reference=soup([first, second]), steps=2)",
    ],
    "at_scale": "telos fit salsa --data HuggingFaceH4/ultrafeedback_binarized?split=train_prefs --model runs/sft-seed1 "
    "--reference runs/sft-seed2 --purpose runs/reward-model --rl.beta 0.05 --rl.learning-rate 1e-6 --steps 1000",
}


@dataclass(frozen=True)
class SALSA(Method):
    """RL anchored to a soup of checkpoints.

    Given: model (theta_1, where the policy starts), reference (theta_2: the other checkpoint; several as a list, or as
    folders joined by commas), and what the RL method takes: purpose, critic, lora.
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "reference", "purpose", "critic", "lora")

    rl: Method = use("ppo")  # noqa: RUF009
    """The RL method, with its own KL coefficient. Paper: PPO."""
    alpha: float | None = None
    """Weight of theta_1 in [0, 1], the others share the rest; None: all alike; 1 is plain RL. Paper: 0.5 for two."""
    initial: Literal["theta_1", "soup"] = "theta_1"
    """Where the policy starts. Paper: theta_1, as for plain PPO."""
    anchor: Literal["soup", "mixture", "start"] = "soup"
    """What the KL refers to: soup; mixture, the geometric mean of the models' predictions; start, the policy as it was
    (plain RL). Paper: soup."""

    def __post_init__(self) -> None:
        soup_weights(2, self.alpha)
        known = self.initial in ("theta_1", "soup") and self.anchor in ("soup", "mixture", "start")
        if not known or "reference" not in self.rl.takes or self.rl.data is not Prompts:
            raise TelosError(
                "initial, anchor or rl is out of range",
                expected="theta_1 or soup; soup, mixture or start; a method on prompts with a reference",
                got=f"{self.initial}, {self.anchor}, {type(self.rl).__name__}",
            )

    def prepare(self, spec: Spec) -> Spec:
        model = spec.need("model", "theta_1, a model fine-tuned from the same parent as the reference")
        checkpoints = [model, *others(spec)]
        averaged = soup(checkpoints, self.alpha, spec.device)
        given = {name: value for name, value in spec.given.items() if value is not None}
        unread = sorted(set(given) - set(self.rl.takes))
        if unread:
            raise TelosError(f"{type(self.rl).__name__} does not use '{unread[0]}'", fix=f"leave {unread[0]} out")
        given["model"] = averaged if self.initial == "soup" else model
        given["reference"] = None if self.anchor == "start" else averaged
        prepared = self.rl.prepare(spec.replace(given=given))
        if self.anchor != "mixture":
            return prepared
        models = [load_model(checkpoint, spec.device).frozen() for checkpoint in checkpoints]
        mixture = GeometricMixture(models, soup_weights(len(models), self.alpha))
        return prepared.replace(given={**prepared.given, "reference": mixture})

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        return self.rl.learner(spec, rng)

    def source(self, spec: Spec) -> Source:
        return self.rl.source(spec)


def others(spec: Spec) -> list[Any]:
    """The checkpoints besides the model: one, a list, or folders joined by commas."""
    value = spec.need("reference", "theta_2, the other checkpoint of the soup (or several)")
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return list(value) if isinstance(value, list) else [value]
