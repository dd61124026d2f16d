"""Muon optimizer for the denoiser's matrices, with AdamW for all other parameters.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix, so that all directions move alike. The update is scaled to the size of AdamW's, 0.2 root mean
square (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so both kinds of parameters share one learning rate.
"""

from collections.abc import Iterable

import torch


def orthogonalize(g: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Bring the singular values of an (m, n) matrix near one, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm() + 1e-7)
    tall = g.shape[0] > g.shape[1]
    x = x.T if tall else x
    for _ in range(rounds):
        s = x @ x.T
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Optimizer: Muon for parameters of two or more dimensions (a kernel is a matrix out x rest), AdamW for others."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    update = self._matrix(p, group) if p.ndim > 1 else self._vector(p, group)
                    p.mul_(1 - group["lr"] * group["weight_decay"] * (p.ndim > 1)).sub_(group["lr"] * update)

    def _matrix(self, p: torch.Tensor, group: dict) -> torch.Tensor:
        assert p.grad is not None
        state = self.state[p]
        mean = state.setdefault("mean", torch.zeros_like(p))
        mean.lerp_(p.grad, 1 - group["momentum"])
        flat = torch.lerp(p.grad, mean, group["momentum"]).flatten(1)
        return (0.2 * max(flat.shape) ** 0.5 * orthogonalize(flat)).view_as(p)

    def _vector(self, p: torch.Tensor, group: dict) -> torch.Tensor:
        assert p.grad is not None
        state, (b1, b2) = self.state[p], group["betas"]
        mean, square = (state.setdefault(key, torch.zeros_like(p)) for key in ("mean", "square"))
        state["step"] = state.get("step", 0) + 1
        mean.lerp_(p.grad, 1 - b1)
        square.lerp_(p.grad.square(), 1 - b2)
        scale = (square / (1 - b2 ** state["step"])).sqrt_().add_(1e-8)
        return mean / (1 - b1 ** state["step"]) / scale
