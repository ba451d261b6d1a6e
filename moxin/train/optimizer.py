"""The optimizers: AdamW, Lion and Muon, each with a switch that skips a step where the weights are, without asking the host.

All work on whole parameters as well as on the flat pieces that ZeRO makes of them. A step reads two numbers that the engine
leaves on the device: `grad_scale`, by which gradients are divided, and `found_inf`, which is 1 where nothing may be changed.
These are the names that PyTorch's own fused AdamW knows them by.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig
from moxin.train.job import OptimizerSettings
from moxin.train.muon import Exchange, Matrix, orthogonalised
from moxin.train.shards import WEIGHT, Flat, Piece

BLOCKS = "blocks."
"""Matrices of the blocks are what Muon is for; embeddings, the output projection and norms are AdamW's."""


def build(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer over a model's parameters: matrices and embeddings are decayed, norms are not. The loop sets the rate.

    A group's `names` are those of its parameters. torch's own AdamW: DeepSpeed's CPU Adam compiles C++ on first use, 89 s
    measured.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    muon = settings.kind == "muon"
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in named:
        decayed = parameter.ndim >= 2
        by_muon = muon and decayed and name.startswith(BLOCKS)
        group = groups.setdefault((by_muon, decayed), {"params": [], "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
        group["weight_decay"] = settings.weight_decay if decayed else 0.0
        group["muon"] = by_muon
    ordered = [groups[key] for key in sorted(groups, reverse=True)]
    if settings.kind == "lion":
        return Lion(ordered, settings.betas)
    if settings.kind == "muon":
        config = cast(Decoder, module).config
        return MuonWithAdamW(ordered, settings, {name: splits_of(config, name) for name, _ in named})
    return torch.optim.AdamW(ordered, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


def splits_of(config: ModelConfig, name: str) -> tuple[int, ...]:
    """Rows of the matrices that are one parameter of ours; empty where it is one matrix."""
    if name.endswith("attention.qkv.weight"):
        return tuple(n * config.head_dim for n in (config.n_heads, config.n_kv_heads, config.n_kv_heads))
    if name.endswith("mlp.up.weight") and config.activation == "swiglu":
        return (config.d_ff, config.d_ff)
    return ()


def tell(optimizer: torch.optim.Optimizer, norm: Tensor, bad: Tensor, grad_clip: float) -> Tensor:
    """Leaves `grad_scale` and `found_inf` for the next step: clipping by the gradient's norm, and no change where `bad` or
    where the norm is not finite. Returns whether nothing will be changed, bool[].

    The divisor is DeepSpeed's and PyTorch's, `(norm + 1e-6) / grad_clip`, at least 1.
    """
    skip = bad | ~torch.isfinite(norm) | (norm < 0)  # DeepSpeed says -1 where the norm is not finite
    scale = ((norm + 1e-6) / grad_clip).clamp(min=1.0) if grad_clip else torch.ones_like(norm)
    told = cast(Any, optimizer)
    told.grad_scale = torch.where(skip, torch.ones_like(scale), scale).float()
    told.found_inf = skip.float()
    return skip


def state_of(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a parameter of a group, made where there is none yet."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
        if group["muon"]:
            names = ("momentum_buffer",)
        elif isinstance(optimizer, Lion):
            names = ("exp_avg",)
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state |= {name: torch.zeros_like(parameter) for name in names}
    return state


def flats_of(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> list[Flat]:
    """Every parameter, whole, with its state."""
    flats = []
    for group in optimizer.param_groups:
        for name in group["names"]:
            parameter = parameters[name]
            state = state_of(optimizer, group, parameter)
            tensors = {key: value.view(-1) for key, value in state.items() if key != "step"}
            pieces = [Piece(name, 0, 0, parameter.numel())]
            whole = {WEIGHT: parameter.detach().view(-1), **tensors}
            flats.append(Flat(whole, pieces, int(state["step"])))
    return flats


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Sets how many updates have been made of every parameter that has a state."""
    for state in optimizer.state.values():
        state["step"] = torch.full_like(state["step"], updates)


class _Skipping(torch.optim.Optimizer):
    """A base for optimizers of our own. `update` is called for every parameter that has a gradient."""

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop computes the gradients"
        keep = None if self.found_inf is None else self.found_inf > 0
        for group in self.param_groups:
            self._step_group(group, [p for p in group["params"] if p.grad is not None], keep)

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor], keep: Tensor | None) -> None:
        for parameter in parameters:
            self._update(group, parameter, self._gradient(parameter), keep)

    def _update(
        self, group: dict[str, Any], parameter: Tensor, gradient: Tensor, keep: Tensor | None
    ) -> None:
        raise NotImplementedError

    def _gradient(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        return gradient if self.grad_scale is None else gradient / self.grad_scale


def _assign(target: Tensor, value: Tensor, keep: Tensor | None) -> None:
    """`target = value`, unless it is to be kept: values that are not finite must not even be multiplied by zero."""
    target.copy_(value if keep is None else torch.where(keep, target, value))


class Lion(_Skipping):
    """Lion (arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum, weights decayed apart from it."""

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    def _update(
        self, group: dict[str, Any], parameter: Tensor, gradient: Tensor, keep: Tensor | None
    ) -> None:
        state = state_of(self, group, parameter)
        momentum, (beta1, beta2) = state["exp_avg"], group["betas"]
        direction = momentum.lerp(gradient, 1 - beta1).sign_()
        direction.add_(parameter, alpha=group["weight_decay"])
        _assign(parameter, parameter - group["lr"] * direction, keep)
        _assign(momentum, momentum.lerp(gradient, 1 - beta2), keep)
        _assign(state["step"], state["step"] + 1, keep)


class MuonWithAdamW(_Skipping):
    """Muon (kellerjordan.github.io/posts/muon) for groups with `muon`, AdamW for the others.

    Updates are 0.2 · sqrt(longer side) times the orthogonalised momentum, the size that AdamW's have, so that both kinds of
    groups share learning rate and weight decay (arXiv 2502.16982, §2.2). Where ZeRO has made a group one flat tensor, the
    engine sets `matrices` (where each lies in the group) and `exchange` (how to bring the pieces of one together).
    """

    def __init__(
        self, groups: list[dict[str, Any]], settings: OptimizerSettings, splits: dict[str, tuple[int, ...]]
    ) -> None:
        """`splits`: rows of the matrices that are several in one (queries, keys, values), by parameter."""
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.settings, self.splits = settings, splits
        self.matrices: list[Matrix] = []
        self.exchange: Exchange | None = None

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor], keep: Tensor | None) -> None:
        if not group["muon"]:
            super()._step_group(group, parameters, keep)
            return
        directions = []
        for parameter in parameters:
            state, gradient = state_of(self, group, parameter), self._gradient(parameter)
            beta, momentum = self.settings.momentum, state["momentum_buffer"]
            after = momentum.lerp(gradient, 1 - beta)
            directions.append(gradient.lerp(after, beta))  # Nesterov's
            _assign(momentum, after, keep)
            _assign(state["step"], state["step"] + 1, keep)
        if self.exchange is None:
            updates = [
                orthogonalised(d, self.splits[name])
                for d, name in zip(directions, group["names"], strict=True)
            ]
        else:
            updates = [self.exchange(directions[0], self.matrices)]
        for parameter, update in zip(parameters, updates, strict=True):
            decayed = parameter * (1 - group["lr"] * group["weight_decay"])
            _assign(parameter, decayed - group["lr"] * update, keep)

    def _update(
        self, group: dict[str, Any], parameter: Tensor, gradient: Tensor, keep: Tensor | None
    ) -> None:
        state = state_of(self, group, parameter)
        beta1, beta2 = self.settings.betas
        step, mean, square = state["step"], state["exp_avg"], state["exp_avg_sq"]
        _assign(step, step + 1, keep)
        _assign(mean, mean.lerp(gradient, 1 - beta1), keep)
        _assign(square, square.lerp(gradient.square(), 1 - beta2), keep)
        made = step.clamp(min=1)
        root = (square / (1 - beta2**made)).sqrt_().add_(self.settings.eps)
        update = mean / (1 - beta1**made) / root + group["weight_decay"] * parameter
        _assign(parameter, parameter - group["lr"] * update, keep)
