"""Prediction of the clean image from a denoiser's output, for every scheduler and prediction type.

A noisy sample is z = α·x₀ + σ·ε. Variance-preserving schedulers have α² + σ² = 1; flow matching has α = 1 - σ. All
formulas are in the space of the denoiser's *input*. Schedulers with a larger z (Euler and others) scale it to variance
preservation there, so that the same formulas hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from counterpoise.errors import ConfigError

_SMALLEST = 1e-4  # least α: at zero terminal SNR, ε alone does not determine x₀


def prediction_type(scheduler: Any) -> str:
    """Return the denoiser's prediction type: ``epsilon``, ``sample``, ``v_prediction`` or ``flow_prediction``.

    Raises:
        ConfigError: The scheduler has neither ``alphas_cumprod`` nor ``sigmas``, or another prediction type.
    """
    name = type(scheduler).__name__
    flow = name.startswith("FlowMatch") or getattr(scheduler.config, "use_flow_sigmas", False)
    kind = "flow_prediction" if flow else getattr(scheduler.config, "prediction_type", "epsilon")
    if kind not in _FORMULAS or not (flow or hasattr(scheduler, "alphas_cumprod")):
        raise ConfigError(
            "feedback does not support the scheduler",
            where="generator.scheduler",
            found=f"{name} with prediction type {kind!r}",
            allowed="schedulers of diffusers with alphas_cumprod, or for flow matching",
        )
    return kind


def noise_level(scheduler: Any, step: int) -> tuple[float, float]:
    """Return (α, σ) of the denoiser's input at the scheduler's ``step``-th step, from 0."""
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) >= len(scheduler.timesteps):
        sigma = float(scheduler.sigmas[step])
        if prediction_type(scheduler) == "flow_prediction":
            return 1 - sigma, sigma
        alpha = 1 / (1 + sigma**2) ** 0.5
        return alpha, sigma * alpha
    time = float(scheduler.timesteps[step])
    table = scheduler.alphas_cumprod.double().cpu().numpy()
    cumulative = float(np.interp(time, np.arange(len(table)), table))
    return cumulative**0.5, (1 - cumulative) ** 0.5


def predict_clean(
    kind: str, sample: Float[Tensor, n * shape], output: Float[Tensor, n * shape], alpha: float, sigma: float
) -> Float[Tensor, n * shape]:
    """Compute the predicted clean image (or latent) x₀.

    Args:
        kind: From :func:`prediction_type`.
        sample: The denoiser's input z.
        output: Its prediction: ε; x₀; v = α·ε - σ·x₀ (Salimans & Ho 2022); or ε - x₀ (Lipman et al. 2023).
        alpha: Share of the image in ``sample``.
        sigma: Share of the noise.
    """
    return _FORMULAS[kind](sample, output, alpha, sigma)


_FORMULAS = {
    "epsilon": lambda z, eps, alpha, sigma: (z - sigma * eps) / max(alpha, _SMALLEST),
    "sample": lambda z, clean, alpha, sigma: clean,
    "v_prediction": lambda z, v, alpha, sigma: alpha * z - sigma * v,
    "flow_prediction": lambda z, v, alpha, sigma: z - sigma * v,
}
