"""Resolution of ``auto`` devices and precision."""

from __future__ import annotations

from dataclasses import dataclass

from counterpoise.config import Experiment
from counterpoise.errors import ConfigError


@dataclass(frozen=True)
class Devices:
    """Resolved devices of generator and scorer, and the generator's precision."""

    generator: str
    dtype: str
    scorer: str


def devices(experiment: Experiment) -> Devices:
    """Resolve ``auto``. The result follows from the config alone, so that every machine computes the same address.

    A model is on a GPU if its workers reserve one (``pool.sampling.num_gpus``, ``pool.scoring.num_gpus``).

    Raises:
        ConfigError: ``device: cuda`` where the workers reserve no GPU.
    """
    generator = experiment.generator
    assert generator is not None
    device = _device(generator.device, experiment.pool.sampling.num_gpus, "generator.device", "pool.sampling.num_gpus")
    scorer = experiment.scorer.device if experiment.scorer else "auto"
    scoring = _device(scorer, experiment.pool.scoring.num_gpus, "scorer.device", "pool.scoring.num_gpus")
    automatic = "bfloat16" if device == "cuda" else "float32"
    return Devices(device, automatic if generator.dtype == "auto" else generator.dtype, scoring)


def _device(device: str, num_gpus: float, where: str, reserved: str) -> str:
    if device == "auto":
        return "cuda" if num_gpus > 0 else "cpu"
    if device == "cuda" and num_gpus == 0:
        raise ConfigError("`device: cuda` without a reserved GPU", where=where, found=device, remedy=f"set {reserved}")
    return device
