"""DDPM policy: a goal-conditioned diffusion policy with a fixed chain of denoising steps.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, NeurIPS 2020, arXiv 2006.11239; as a policy: Pearce et al.,
Imitating Human Behaviour with Diffusion Models, ICLR 2023, arXiv 2301.10677; Chi et al., Diffusion Policy, RSS 2023.

With alpha-bar_j decreasing over j = 1 .. J, a network F predicts the noise in the actions a of a window:

    mean || F(sqrt(alpha-bar_j) a + sqrt(1 - alpha-bar_j) eps, s, g, j) - eps ||^2,   j uniform        (1)

To act, x_J is noise and each of the J steps draws from q(x_{j-1} | x_j, a') with a' the actions that F implies,
clipped to the training range. The chain's length is fixed in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Act, Policy, Product
from telos.core.rng import Rng
from telos.core.sources import UniformWindows
from telos.data.records import Record, Transitions
from telos.data.windows import Windows
from telos.nets.critics import polyak_
from telos.nets.denoisers import Denoiser, Sizes, make_denoiser
from telos.nets.play import Play, State, Window
from telos.nets.policies import box, need_rng
from telos.ops.diffusion import chain_alpha_bars, chain_step, masked_mse

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

BASELINE = {
    "method": "DDPM policy",
    "title": "Imitating Human Behaviour with Diffusion Models",
    "reference": "Pearce et al., ICLR 2023, arXiv 2301.10677; the chain of Ho et al., NeurIPS 2020, arXiv 2006.11239",
    "year": 2023,
    "purpose": ["goal", "demonstration"],
    "product": "Policy",
    "data": "play trajectories",
    "summary": "Goal-conditioned diffusion policy that predicts noise and runs a fixed chain of denoising steps.",
    "equations": [
        r"s=s_{t-k+1:t},\quad a=a_{t-k+1:t},\quad g=s_{t'}\text{ with }t'>t",
        r"\mathcal L=\mathbb E\left[\left\lVert F_\theta(\sqrt{\bar\alpha_j}\,a+\sqrt{1-\bar\alpha_j}\,\epsilon,s,g,j)"
        r"-\epsilon\right\rVert^2\right],\quad j\sim U\{1,\dots,J\},\ \epsilon\sim\mathcal N(0,I)",
        r"D_\theta(x_j)=\operatorname{clip}\left(\frac{x_j-\sqrt{1-\bar\alpha_j}\,F_\theta(x_j,s,g,j)}"
        r"{\sqrt{\bar\alpha_j}},a_{\min},a_{\max}\right)",
        r"x_J\sim\mathcal N(0,I),\quad "
        r"x_{j-1}\sim\mathcal N\left(\frac{\sqrt{\bar\alpha_{j-1}}(1-\alpha_j)D_\theta(x_j)"
        r"+\sqrt{\alpha_j}(1-\bar\alpha_{j-1})x_j}{1-\bar\alpha_j},\ "
        r"\frac{(1-\alpha_j)(1-\bar\alpha_{j-1})}{1-\bar\alpha_j}I\right),\quad"
        r"\alpha_j=\frac{\bar\alpha_j}{\bar\alpha_{j-1}}",
    ],
    "deviations": [
        "The network and its inputs are BESO's, so that the two differ in the diffusion alone: the step j enters as "
        "log(sigma_j) / 4 with sigma_j = sqrt(1 / alpha-bar_j - 1).",
    ],
}


@dataclass(frozen=True)
class DDPMPolicy(Method):
    """A goal-conditioned DDPM policy from play: episodes of observations and actions, without rewards."""

    data = Transitions

    window: int = 5
    """States that the policy sees, >= 1. As BESO."""
    goal_length: int = 1
    """Consecutive future states that make a goal, >= 1. As BESO."""
    observation_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the state; None for all."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the goal; None for all."""
    final_goals: float = 0.0
    """Share of training goals that are the episode's end; the others are uniform over its future."""
    network: Literal["transformer", "mlp"] = "transformer"
    """The denoiser: a causal transformer over the window, or an MLP for the newest action, for small tasks."""
    layers: int = 4
    """Of the transformer. As BESO."""
    width: int = 240
    """Of the transformer. As BESO."""
    heads: int = 12
    """Of the transformer. As BESO."""
    attention_dropout: float = 0.05
    """Of the transformer, 0 to 1. As BESO."""
    residual_dropout: float = 0.05
    """Of the transformer, 0 to 1. As BESO."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Widths of the MLP's hidden layers."""
    scaling: Literal["minmax", "standardise", "none"] = "minmax"
    """Of observations, goals and actions; the chain ends in noise of deviation 1."""
    chain: int = 50
    """Steps of the chain, in training and in acting, >= 2. Papers: 30 to 100."""
    betas: Literal["cosine", "linear"] = "cosine"
    """How noise grows along the chain. Diffusion Policy: cosine; Ho et al.: linear."""
    ema: float = 0.999
    """Decay of the running mean of the weights that is shipped, 0 to 1. As BESO."""
    learning_rate: float = 1e-4
    """Of AdamW. As BESO."""
    decay: float = 0.99
    """The learning rate is multiplied by this every 100 updates. As BESO."""
    weight_decay: float = 0.0
    """Of AdamW. As BESO."""
    batch_size: int = 1024
    """Windows an update. As BESO."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "DDPM policy")
        if min(self.window, self.goal_length) < 1 or self.chain < 2 or not 0 <= self.final_goals <= 1:
            raise TelosError(
                "DDPM policy: an option is out of range", got=f"{self.window}, {self.goal_length}, {self.chain}",
                expected="window, goal_length >= 1; chain >= 2; final_goals 0 to 1",
            )  # fmt: skip
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> UniformWindows:
        goals = {"future": 1 - self.final_goals, "final": self.final_goals}
        return UniformWindows(spec.data, self.batch_size, self.window, self.goal_length, goals)

    def learner(self, spec: Spec, rng: Rng) -> DDPMLearner:
        return DDPMLearner(self, spec.data, rng)

    def network_config(self) -> dict[str, Any]:
        """What `make_denoiser` builds."""
        if self.network == "mlp":
            return {"kind": "mlp", "hidden": list(self.hidden)}
        names = ("layers", "width", "heads", "attention_dropout", "residual_dropout")
        return {"kind": "transformer", **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Noised(Record):
    """A batch of windows with all that is drawn for it.

    Args:
        alpha_bar: (B,) of the drawn steps; noise: (B, slots, A) standard normal; dropout: (B, numbers) uniform.
    """

    windows: Windows
    alpha_bar: Tensor
    noise: Tensor
    dropout: Tensor


def noise_loss(
    net: Denoiser,
    actions: Float[Tensor, "B slots A"],
    states: Float[Tensor, "B k S"],
    goals: Float[Tensor, "B G g"],
    mask: Bool[Tensor, "B k"],
    alpha_bar: Float[Tensor, " B"],
    noise: Float[Tensor, "B slots A"],
    dropout: Tensor | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(1) as a sum over real steps, and their number; everything scaled."""
    level = alpha_bar[:, None, None]
    noisy = level.sqrt() * actions + (1 - level).sqrt() * noise
    output = net(noisy, states, goals, (1 / alpha_bar - 1).log() / 8, mask, dropout)
    return masked_mse(output, noise, mask[:, -net.slots :])


class DDPMLearner(Learner):
    """The trained network, and the policy with the running mean of its weights."""

    constant = ("alpha_bars",)

    def __init__(self, method: DDPMPolicy, data: Transitions, rng: Rng):
        self.method = method
        columns = {name: getattr(method, name) for name in ("observation_columns", "goal_columns")}
        play = Play.fitted(data, method.scaling, window=method.window, goal_length=method.goal_length, **columns)
        self.policy = ChainPolicy(play.config(), method.network_config(), method.chain, method.betas)
        self.policy.play.load_state_dict(play.state_dict())
        self.net = make_denoiser(self.policy.sizes, method.network_config(), rng.at("net").torch())
        self.policy.net.load_state_dict(self.net.state_dict())
        self.policy.requires_grad_(False)
        for module in (self.net, self.policy):
            module.to(data.actions.device)
        self.alpha_bars = chain_alpha_bars(method.chain, method.betas).to(data.actions.device)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), method.learning_rate, weight_decay=method.weight_decay, fused=True
        )
        self.updates = 0

    def update(self, batch: Windows, rng: Rng, micro: int = 1) -> Metrics:
        m, play, slots = self.method, self.policy.play, self.net.slots
        count, loss = batch.mask[:, -slots:].sum(), 0.0
        self.optimiser.zero_grad()
        for part in split(self.noised(batch, rng), micro):
            windows: Windows = part.windows
            goals = play.scaled_goals(windows.goals) * windows.has_goal[:, None, None]
            actions, states = play.actions(windows.actions[:, -slots:]), play.scaled_states(windows.observations)
            total, _ = noise_loss(
                self.net, actions, states, goals, windows.mask, part.alpha_bar, part.noise,
                part.dropout if self.net.dropouts else None,
            )  # fmt: skip
            (total / count).backward()
            loss = loss + total.detach() / count
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        for group in self.optimiser.param_groups:
            group["lr"] = m.learning_rate * m.decay ** (self.updates // 100)
        self.optimiser.step()
        self.updates += 1
        polyak_(self.policy.net, self.net, 1 - min(m.ema, (1 + self.updates) / (10 + self.updates)))
        return {"loss": loss, "grad_norm": grad_norm}

    def noised(self, batch: Windows, rng: Rng) -> Noised:
        """Draws for the whole batch, so that its parts see what they would see together."""
        device, rows = batch.actions.device, len(batch)
        generator = rng.at("noise").torch(device)
        steps = torch.randint(self.method.chain, (rows,), generator=generator, device=device)
        noise = torch.randn((rows, self.net.slots, batch.actions.shape[-1]), generator=generator, device=device)
        dropout = torch.rand((rows, self.net.dropouts), generator=generator, device=device)
        return Noised(batch, self.alpha_bars[steps], noise, dropout)

    def product(self) -> Product:
        return self.policy


class ChainPolicy(Policy):
    """Draws actions through the whole chain: a new draw at each step, so `act` needs a generator.

    Args:
        play: the configuration of columns, scaling and window.
        network: of the denoiser.
        chain, betas: the chain's length and kind.
    """

    def __init__(self, play: Mapping[str, Any], network: Mapping[str, Any], chain: int, betas: str):
        super().__init__()
        self.play, self.network, self.chain, self.betas = Play(**play), dict(network), chain, betas
        p = self.play
        same = p.observation_columns == p.goal_columns
        self.sizes = Sizes(p.state_size, p.goal_size, len(p.low), p.window, p.goal_length, same)
        self.net = make_denoiser(self.sizes, network)
        self.low, self.high = p.low, p.high
        self.levels = [*chain_alpha_bars(chain, betas).tolist()[::-1], 1.0]

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: State | None = None,
        mask: Any = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions (B, A), or (A,) for one observation; goal and state as telos.nets.play takes them."""
        window = self.play.look(obs, goal, state)
        if window.goals is None:
            raise TelosError("the policy needs a goal", expected=f"goal of {self.play.goal_size} values")
        generator, device = need_rng(rng), window.states.device
        bounds = self.play.actions(torch.tensor([self.low, self.high], device=device))

        def normal() -> Tensor:
            return torch.randn(len(window.states), len(self.low), generator=generator, device=device)

        x = normal()
        for now, then in pairwise(self.levels):
            actions = torch.cat([window.past, x[:, None]], 1)[:, -self.net.slots :]
            data = torch.clamp(self.clean(actions, now, window)[:, -1], bounds[0], bounds[1])
            x = chain_step(x, data, normal(), now, then) if then < 1 else data
        return Act(*self.play.finish(window, x))

    def clean(self, actions: Float[Tensor, "B slots A"], level: float, window: Window) -> Float[Tensor, "B slots A"]:
        """The actions that the predicted noise implies, at alpha-bar `level`."""
        assert window.goals is not None
        noise = actions.new_full((len(actions),), math.log(1 / level - 1) / 8)
        predicted = self.net(actions, window.states, window.goals, noise, window.mask)
        return (actions - math.sqrt(1 - level) * predicted) / math.sqrt(level)

    def config(self) -> dict[str, Any]:
        return {"play": self.play.config(), "network": self.network, "chain": self.chain, "betas": self.betas}

    def probe(self) -> dict[str, Tensor]:
        window, actions = self.play.probe(self.net.slots)
        return self.play.probed(window, torch.cat([self.clean(actions, level, window) for level in (0.5, 0.9)]))
