"""BESO: a goal-conditioned diffusion policy from play data that acts after three denoising steps.

Reuss, Li, Jia, Lioutikov: Goal-Conditioned Imitation Learning using Score-based Diffusion Policies, RSS 2023,
arXiv 2304.02532.

A network F denoises the actions a of a window of k states, given a goal g of G future states, with d = sigma_data:

    D(a; sigma) = c_skip a + c_out F(c_in a, s, g, log(sigma) / 4)                                   (1)
    c_skip = d^2 / (sigma^2 + d^2),   c_out = sigma d / sqrt(sigma^2 + d^2),   c_in = 1 / sqrt(sigma^2 + d^2)

It minimises, with one sigma a window, drawn from a density cut to [sigma_min, sigma_max],

    mean || F(c_in (a + sigma eps), s, g, .) - (a - c_skip (a + sigma eps)) / c_out ||^2             (2)

To act, the newest action starts as sigma_max z and goes through the levels sigma_max = sigma_0 > ... > sigma_n = 0,

    a <- sigma_{i+1} / sigma_i a + (1 - sigma_{i+1} / sigma_i) D(a; sigma_i)     (DDIM, n = 3)       (3)

while the earlier actions are those executed. Where goals were dropped in training, guidance replaces D by

    D(a; none) + guidance (D(a; g) - D(a; none)),   none = a zero vector                             (4)

C-BESO is the default; CFG-BESO is goal_dropout=0.1 with guidance 1.5: 1 is the conditional model, 0 ignores the goal.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
from telos.ops.diffusion import DENSITIES, SAMPLERS, SCHEDULES, guided, levels, masked_mse, preconditioning

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

PAPER = {
    "method": "BESO",
    "title": "Goal-Conditioned Imitation Learning using Score-based Diffusion Policies",
    "arxiv": "2304.02532",
    "year": 2023,
    "url": "https://arxiv.org/abs/2304.02532",
    "purpose": ["goal", "demonstration"],
    "product": "Policy",
    "data": "play trajectories",
    "summary": "Goal-conditioned diffusion policy over a continuous range of noise that acts after about three "
    "denoising steps.",
    "claim": "From play with several ways to a goal, three denoising steps reach the goal far more often than a "
    "regression to the mean action, and about as often as ten steps or a fixed chain of fifty; dropping goals in "
    "training gives a policy whose strength of pursuit is a knob.",
    "paper_claim": {
        "where": "abstract; tables on Block-Push, Relay Kitchen and CALVIN; ablation of the denoising steps",
        "text": "Three denoising steps do as well as diffusion with thirty and more, and best of the compared methods; "
        "with goals dropped in training, more guidance turns random play into behaviour that pursues the goal.",
        "value": "3 denoising steps against 30 and more; the tables' figures are unverified. An independent re-run has "
        "Block-Push .93 (conditional) and 3.47 tasks in Kitchen",
        "data": "Block-Push, Relay Kitchen and CALVIN play data; a real toy kitchen with ten tasks",
        "model": "causal transformer: 4 layers of width 240 (Block-Push), 6 layers of width 360 (Kitchen)",
        "mechanism": "Demonstrators pass an obstacle on either side, so their mean action runs into it: a policy must "
        "keep both ways, and how many denoising steps that takes can be counted. Meta-World adds a robot arm, but its "
        "scripts have one way to do a task. Images, human play and long sequences of tasks are not tested.",
    },
    "equations": [
        r"s=s_{t-k+1:t},\quad a=a_{t-k+1:t},\quad g=s_{t'}\text{ with }t'>t",
        r"D_\theta(a;\sigma,g)=c_{\mathrm{skip}}\,a+c_{\mathrm{out}}\,"
        r"F_\theta\left(c_{\mathrm{in}}\,a,s,g,\frac{\log\sigma}{4}\right)",
        r"c_{\mathrm{skip}}=\frac{\sigma_d^2}{\sigma^2+\sigma_d^2},\quad "
        r"c_{\mathrm{out}}=\frac{\sigma\sigma_d}{\sqrt{\sigma^2+\sigma_d^2}},\quad "
        r"c_{\mathrm{in}}=\frac{1}{\sqrt{\sigma^2+\sigma_d^2}}",
        r"\mathcal L=\mathbb E\left[\left\lVert F_\theta\left(c_{\mathrm{in}}(a+\sigma\epsilon),s,g,"
        r"\frac{\log\sigma}{4}\right)-\frac{a-c_{\mathrm{skip}}(a+\sigma\epsilon)}{c_{\mathrm{out}}}\right\rVert^2\right],"
        r"\quad\epsilon\sim\mathcal N(0,I)",
        r"a\sim\mathcal N(0,\sigma_0^2I),\quad a\leftarrow\frac{\sigma_{i+1}}{\sigma_i}a"
        r"+\left(1-\frac{\sigma_{i+1}}{\sigma_i}\right)D_\theta(a;\sigma_i,g),\quad"
        r"\sigma_{\max}=\sigma_0>\dots>\sigma_n=0",
        r"D_\lambda=D_\theta(a;\sigma,\varnothing)"
        r"+\lambda\left(D_\theta(a;\sigma,g)-D_\theta(a;\sigma,\varnothing)\right)",
    ],
    "deviations": [
        "sigma_data is measured (the standard deviation of the scaled actions) unless given; the paper's constant 0.5 "
        "was not fitted, and a mismatch spoils the model.",
        "Goals are dropped for a whole sample, as the text says; the released code's drop of single elements is "
        "goal_dropout_kind='element'.",
        "Each row of the data is the newest of one window, and windows that reach over an episode's start are masked; "
        "the code slices whole windows only and lets them grow at the start.",
        "Goals are read from the next observations, so that the very last state can be one; a window that too few "
        "states follow has the zero goal, as in the code, but zero after scaling.",
        "The lognormal density of sigma is cut to the range; the schedules vp, iddpm and cosine are too.",
        "States and goals share their embedding only where they have the same columns.",
        "The MLP denoises the newest action alone and reads no past actions.",
    ],
    "traps": [
        "sigma_max = 1 suits actions scaled to [-1, 1]: with scaling='standardise' take several.",
        "Do not sample above the sigma_max of training: with_sampling refuses it.",
        "With a window of 1 the sampler may change its mind at every step: keep 3 or more where there are modes.",
        "Earlier actions are clean in acting and noisy in training, as in the original.",
        "The running mean of the weights is what is shipped; early on it averages over few updates.",
    ],
    "terms": [
        "GCIL",
        "learning from play",
        "multimodal",
        "classifier-free guidance",
        "EDM",
        "k-diffusion",
        "robot learning",
        "hindsight",
    ],
    "at_scale": "telos fit beso --data minari:D4RL/kitchen/mixed-v2 --window 4 --goal-length 2 --layers 6 --width 360 "
    "--heads 6 --attention-dropout 0.3 --residual-dropout 0 --scaling none --sigma-min 0.005 --sigma-max 1 "
    "--goal-dropout 0.1 --guidance 1.5 --steps 40000 --device cuda",
    "usage": [
        "telos fit beso --data play.npz --network mlp --window 4 --batch-size 64 --learning-rate 1e-3 --steps 100 "
        "--out runs/beso",
        "import torch",
        'play = telos.load("play.npz")',
        'method = telos.BESO(network="mlp", window=4, batch_size=64, learning_rate=1e-3)',
        'policy = method.fit(play, steps=100).with_sampling(steps=10, sampler="heun")  # 3 steps of ddim without this',
        "act = policy.act([0.2, 0.5], goal=[0.9, 0.3], rng=torch.Generator().manual_seed(0))",
        "act = policy.act([0.3, 0.5], goal=[0.9, 0.3], state=act.state, rng=torch.Generator().manual_seed(1))",
        'policy.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class BESO(Method):
    """A goal-conditioned diffusion policy from play: episodes of observations and actions, without rewards."""

    data = Transitions

    window: int = 5
    """States that the policy sees, >= 1. Paper: 5 (Block-Push), 4 (Kitchen)."""
    goal_length: int = 1
    """Consecutive future states that make a goal, >= 1. Paper: 1 (Block-Push), 2 (Kitchen)."""
    observation_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the state; None for all. Paper: 10 of 16 (Block-Push), all (Kitchen)."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the goal; None for all. Paper: the blocks (Block-Push), all (Kitchen)."""
    final_goals: float = 0.0
    """Share of training goals that are the episode's end; the others are uniform over its future. Paper: 0."""
    goal_dropout: float = 0.0
    """Probability of dropping a goal in training, which makes guidance possible. Paper: 0 (C-BESO), 0.1 (CFG-BESO)."""
    goal_dropout_kind: Literal["sample", "element"] = "sample"
    """Drop whole goals, or single elements of them. Paper: sample; its repository: element."""
    network: Literal["transformer", "mlp"] = "transformer"
    """A causal transformer over the window, or an MLP for the newest action, for small tasks. Paper: transformer."""
    layers: int = 4
    """Of the transformer. Paper: 4 (Block-Push), 6 (Kitchen)."""
    width: int = 240
    """Of the transformer. Paper: 240 (Block-Push), 360 (Kitchen)."""
    heads: int = 12
    """Of the transformer. Paper: 12 (Block-Push), 6 (Kitchen)."""
    attention_dropout: float = 0.05
    """Of the transformer, 0 to 1. Paper: 0.05 (Block-Push), 0.3 (Kitchen)."""
    residual_dropout: float = 0.05
    """Of the transformer, 0 to 1. Paper: 0.05 (Block-Push), 0 (Kitchen)."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Widths of the MLP's hidden layers. telos: 3 of 128."""
    scaling: Literal["minmax", "standardise", "none"] = "minmax"
    """Of observations, goals and actions. Paper: minmax (Block-Push), none (Kitchen)."""
    sigma_min: float = 0.05
    """Lowest noise level, in units of scaled actions, > 0. Paper: 0.05 (Block-Push), 0.005 (Kitchen)."""
    sigma_max: float = 1.0
    """Highest noise level, which must drown the actions: twice their deviation or more. Paper: 1."""
    sigma_data: float | None = None
    """Standard deviation of the scaled actions; None measures it. Paper: 0.5, a constant."""
    density: Literal["loglogistic", "lognormal", "loguniform", "uniform", "v_diffusion"] = "loglogistic"
    """From which noise levels are drawn in training. Paper: loglogistic."""
    denoising_steps: int = 3
    """Levels from sigma_max to sigma_min in acting, >= 1; can be changed later. Paper: 3."""
    sampler: Literal["ddim", "euler", "heun", "euler_ancestral", "dpmpp_2s", "dpmpp_2m"] = "ddim"
    """Solver in acting; can be changed later. Paper: ddim."""
    schedule: Literal["exponential", "linear", "karras", "vp", "ve", "iddpm", "cosine"] = "exponential"
    """How the levels are spaced; can be changed later. Paper: exponential."""
    guidance: float = 1.0
    """How strongly the goal is pursued, >= 0: 0 ignores it; can be changed later. Paper: 1.5 (CFG-BESO, Kitchen)."""
    ema: float = 0.999
    """Decay of the running mean of the weights that is shipped, 0 to 1. Paper: 0.999."""
    learning_rate: float = 1e-4
    """Of AdamW. Paper: 1e-4."""
    decay: float = 0.99
    """The learning rate is multiplied by this every 100 updates. Paper: 0.99."""
    weight_decay: float = 0.0
    """Of AdamW. Paper: Adam (Block-Push), AdamW (Kitchen)."""
    batch_size: int = 1024
    """Windows an update. Paper: 1024."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "BESO")
        if min(self.window, self.goal_length) < 1 or not 0 <= self.final_goals <= 1 or not 0 <= self.goal_dropout < 1:
            raise TelosError(
                "BESO: an option is out of range", expected="window, goal_length >= 1; shares 0 to 1",
                got=f"{self.window}, {self.goal_length}, {self.final_goals}, {self.goal_dropout}",
            )  # fmt: skip
        data = spec.data.to(spec.device)
        spread = self.measured(data)
        notes = dict(spec.notes)
        if self.sigma_max < 2 * spread or (self.sigma_data and not 0.5 <= self.sigma_data / spread <= 2):
            notes["noise"] = (
                f"scaled actions deviate by {spread:.3g}, for sigma_data {self.sigma_data or spread:.3g} and sigma_max "
                f"{self.sigma_max:.3g}; better: sigma_data within a factor of 2 and sigma_max at least twice as much"
            )
        return spec.replace(data=data, notes=notes)

    def measured(self, data: Transitions) -> float:
        """The standard deviation of the scaled actions, over all dimensions."""
        play = Play.fitted(data, self.scaling)
        return float(play.actions(data.actions).var(0, correction=0).mean().sqrt().clamp(min=1e-3))

    def source(self, spec: Spec) -> UniformWindows:
        goals = {"future": 1 - self.final_goals, "final": self.final_goals}
        return UniformWindows(spec.data, self.batch_size, self.window, self.goal_length, goals)

    def learner(self, spec: Spec, rng: Rng) -> BESOLearner:
        return BESOLearner(self, spec.data, rng)

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
        sigma: (B,) noise levels; noise: (B, slots, A) standard normal.
        kept: (B, 1, 1) or (B, G, g) bool, True where the goal is kept; dropout: (B, numbers) uniform.
    """

    windows: Windows
    sigma: Tensor
    noise: Tensor
    kept: Tensor
    dropout: Tensor


def denoising_loss(
    net: Denoiser,
    actions: Float[Tensor, "B slots A"],
    states: Float[Tensor, "B k S"],
    goals: Float[Tensor, "B G g"],
    mask: Bool[Tensor, "B k"],
    sigma: Float[Tensor, " B"],
    noise: Float[Tensor, "B slots A"],
    sigma_data: float,
    dropout: Tensor | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(2) as a sum over real steps, and their number; everything scaled, gradients reach `net` only."""
    skip, out, into = preconditioning(sigma[:, None, None], sigma_data)
    noisy = actions + sigma[:, None, None] * noise
    output = net(into * noisy, states, goals, sigma.log() / 4, mask, dropout)
    return masked_mse(output, (actions - skip * noisy) / out, mask[:, -net.slots :])


class BESOLearner(Learner):
    """The trained network, and the policy with the running mean of its weights."""

    def __init__(self, method: BESO, data: Transitions, rng: Rng):
        self.method = method
        columns = {name: getattr(method, name) for name in ("observation_columns", "goal_columns")}
        play = Play.fitted(data, method.scaling, window=method.window, goal_length=method.goal_length, **columns)
        sampling = Sampling(
            method.denoising_steps, method.sampler, method.schedule, method.guidance, method.sigma_min, method.sigma_max
        )
        self.policy = BESOPolicy(
            play.config(), method.network_config(), method.sigma_data or method.measured(data), asdict(sampling),
            method.sigma_max, method.goal_dropout > 0,
        )  # fmt: skip
        self.policy.play.load_state_dict(play.state_dict())
        self.net = make_denoiser(self.policy.sizes, method.network_config(), rng.at("net").torch())
        self.policy.net.load_state_dict(self.net.state_dict())
        self.policy.requires_grad_(False)
        for module in (self.net, self.policy):
            module.to(data.actions.device)
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
            goals = play.scaled_goals(windows.goals) * (part.kept & windows.has_goal[:, None, None])
            actions, states = play.actions(windows.actions[:, -slots:]), play.scaled_states(windows.observations)
            total, _ = denoising_loss(
                self.net, actions, states, goals, windows.mask, part.sigma, part.noise, self.policy.sigma_data,
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
        m, device, rows = self.method, batch.actions.device, len(batch)
        generator = rng.at("noise").torch(device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        sigma = DENSITIES[m.density](uniform(rows), m.sigma_min, m.sigma_max, self.policy.sigma_data)
        noise = torch.randn((rows, self.net.slots, batch.actions.shape[-1]), generator=generator, device=device)
        whole = m.goal_dropout_kind == "sample"
        kept = uniform(rows, *((1, 1) if whole else (m.goal_length, self.policy.play.goal_size))) >= m.goal_dropout
        return Noised(batch, sigma, noise, kept, uniform(rows, self.net.dropouts))

    def product(self) -> Product:
        return self.policy


@dataclass(frozen=True)
class Sampling:
    """How a policy draws an action: see the options of BESO with these names.

    Args:
        churn: EDM's S_churn, noise added back before each step of euler and heun; 0 for none.
        sigma_min, sigma_max: the range of the levels.
    """

    steps: int
    sampler: str
    schedule: str
    guidance: float
    sigma_min: float
    sigma_max: float
    churn: float = 0.0


class BESOPolicy(Policy):
    """Draws actions by denoising: a new draw at each step, so `act` needs a generator.

    Args:
        play: the configuration of columns, scaling and window.
        network: of the denoiser.
        sigma_data: the standard deviation of scaled actions that (1) uses.
        sampling: how it draws; change it by `with_sampling`.
        sigma_max: the highest noise level of training.
        goal_free: whether it also knows how to act without a goal.
    """

    def __init__(
        self, play: Mapping[str, Any], network: Mapping[str, Any], sigma_data: float, sampling: Mapping[str, Any],
        sigma_max: float, goal_free: bool,
    ):  # fmt: skip
        super().__init__()
        self.play, self.network = Play(**play), dict(network)
        p = self.play
        same = p.observation_columns == p.goal_columns
        self.sizes = Sizes(p.state_size, p.goal_size, len(p.low), p.window, p.goal_length, same)
        self.net = make_denoiser(self.sizes, network)
        self.sigma_data, self.sigma_max, self.goal_free = sigma_data, sigma_max, goal_free
        self.low, self.high = p.low, p.high
        self.sampling = self.checked(Sampling(**sampling))

    def with_sampling(self, **changes: Any) -> BESOPolicy:
        """This policy with other steps, sampler, schedule, guidance, churn or range; it shares its weights.

        Raises:
            TelosError: unknown names, a level above training's, guidance where no goals were dropped.
        """
        unknown = [name for name in changes if name not in asdict(self.sampling)]
        if unknown:
            raise TelosError(f"sampling has no '{unknown[0]}'", expected=", ".join(asdict(self.sampling)))
        other = copy.copy(self)
        other.sampling = self.checked(replace(self.sampling, **changes))
        return other

    def checked(self, s: Sampling) -> Sampling:
        for name, table, value in (("sampler", SAMPLERS, s.sampler), ("schedule", SCHEDULES, s.schedule)):
            if value not in table:
                raise TelosError(f"BESO: there is no {name} '{value}'", expected=" or ".join(table))
        if s.steps < 1 or not 0 < s.sigma_min < s.sigma_max <= self.sigma_max or s.churn < 0 or s.guidance < 0:
            raise TelosError(
                "BESO: sampling is out of range", got=str(s), expected="steps >= 1, guidance and churn >= 0, and "
                f"0 < sigma_min < sigma_max <= {self.sigma_max}, the highest level of training",
            )  # fmt: skip
        if s.guidance != 1 and not self.goal_free:
            raise TelosError(
                "BESO: guidance needs a policy that also learnt without goals", got=f"guidance {s.guidance}",
                fix="train with goal_dropout=0.1, or leave guidance at 1",
            )  # fmt: skip
        return s

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
        """Actions (B, A), or (A,) for one observation.

        Args:
            goal: raw goal columns, (g,) or (B, g), or several states; see telos.nets.play. None acts without a goal,
                where goals were dropped in training.
            state: what the step before returned; None at an episode's start.
        """
        window = self.play.look(obs, goal, state)
        if window.goals is None and not self.goal_free:
            raise TelosError("the policy needs a goal", expected=f"goal of {self.play.goal_size} values",
                             fix="pass goal=..., or train with goal_dropout=0.1")  # fmt: skip
        s, generator = self.sampling, need_rng(rng)
        shape = len(window.states), len(self.low)
        x = s.sigma_max * torch.randn(shape, generator=generator, device=window.states.device)
        sigmas = levels(s.schedule, s.steps, s.sigma_min, s.sigma_max)
        x = SAMPLERS[s.sampler](lambda a, sigma: self.denoise(a, sigma, window), x, sigmas, generator, s.churn)
        return Act(*self.play.finish(window, x))

    def denoise(self, x: Float[Tensor, "B A"], sigma: float, window: Window) -> Float[Tensor, "B A"]:
        """D of (1), or of (4) with guidance, for the newest action; the earlier ones are as they were executed."""
        strength = self.sampling.guidance if window.goals is not None else 0.0
        actions = torch.cat([window.past, x[:, None]], 1)[:, -self.net.slots :]
        goals = window.goals if window.goals is not None else self.no_goals(len(x))
        if strength == 1:
            return self.denoised(actions, sigma, window, goals)[:, -1]
        without = self.denoised(actions, sigma, window, self.no_goals(len(x)))[:, -1]
        if strength == 0:
            return without
        return guided(self.denoised(actions, sigma, window, goals)[:, -1], without, strength)

    def denoised(
        self, actions: Float[Tensor, "B slots A"], sigma: float, window: Window, goals: Float[Tensor, "B G g"]
    ) -> Float[Tensor, "B slots A"]:
        """(1) for all slots."""
        level = actions.new_full((len(actions),), sigma)
        skip, out, into = preconditioning(level[:, None, None], self.sigma_data)
        return skip * actions + out * self.net(into * actions, window.states, goals, level.log() / 4, window.mask)

    def no_goals(self, rows: int) -> Float[Tensor, "B G g"]:
        """The zero goal."""
        return self.play.goals.mean.new_zeros(rows, self.play.goal_length, self.play.goal_size)

    def config(self) -> dict[str, Any]:
        return {
            "play": self.play.config(), "network": self.network, "sigma_data": self.sigma_data,
            "sampling": asdict(self.sampling), "sigma_max": self.sigma_max, "goal_free": self.goal_free,
        }  # fmt: skip

    def probe(self) -> dict[str, Tensor]:
        """Actions denoised at two levels in fixed whole windows, raw."""
        window, actions = self.play.probe(self.net.slots)
        assert window.goals is not None
        outputs = [self.denoised(actions, sigma, window, window.goals) for sigma in (0.3 * self.sigma_max, 0.01)]
        return self.play.probed(window, torch.cat(outputs))
