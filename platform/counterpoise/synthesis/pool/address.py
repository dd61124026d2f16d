"""Addresses of synthetic images: ``(generation digest, label, group, index)``, known before sampling.

The digest covers everything that decides an image's pixels and scores. Images of a cell are numbered; ``shard_size``
consecutive ones are a shard, which is sampled in one batch and stored under one key. Seeds are hashes of the address,
without what says how images are stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from counterpoise.config import Experiment, Generator
from counterpoise.config.identity import identity
from counterpoise.core.digest import digest
from counterpoise.core.model_source import fingerprint
from counterpoise.errors import ConfigError
from counterpoise.execution.devices import Devices, devices
from counterpoise.generators.identity import _adapter, check_pipeline_folder, identify_adapter
from counterpoise.scoring.identity import identify_scorer
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.prompt_set import PromptSet

_FORMAT = 2  # version of sampling; another one has other pixels
_STORAGE = 3  # version of shard files; another one is another pool of the same pixels
_LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "numpy", "pillow", "pyarrow")
_KEY = re.compile(r".*/(\d+)-(\d+)/(\d{6,})\.parquet")


@dataclass(frozen=True, order=True)
class Shard:
    """A shard: ``shard_size`` consecutive images of a cell, from ``number · shard_size`` on.

    ``group`` is 0 without groups.
    """

    label: int
    group: int
    number: int

    def key(self, digest: str) -> str:
        """Return the shard's key in the store."""
        return f"{folder(digest)}{self.label}-{self.group}/{self.number:06d}.parquet"

    @classmethod
    def from_key(cls, key: str) -> Shard | None:
        """Return the shard at a key; None if this is not the key of a shard."""
        match = _KEY.fullmatch(key)
        return cls(*map(int, match.groups())) if match else None


def folder(digest: str) -> str:
    """Return the prefix of all keys of a generation."""
    return f"pool/{digest}/"


def noise_digest(generation: Mapping[str, Any]) -> str:
    """Return the address of a generation's pixels, however they are stored; seeds follow from it."""
    return digest({key: value for key, value in generation.items() if key != "storage"})


def seed(noise: str, label: int, group: int, index: int, attempt: int) -> int:
    """Return the seed of one image's noise: the first 63 bits of a SHA-256 of its address.

    The address is that of the pixels, :func:`noise_digest`: another codec has the same images.

    PyTorch's CPU generator uses the lower 32 bits, so that n images of a cell have n² / 2³³ expected pairs of equal
    noise: 0.01 for ten thousand images.
    """
    text = f"{noise}/{label}/{group}/{index}/{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def pixel_identity(
    experiment: Experiment,
    names: LabelSpace,
    prompts: PromptSet,
    conditions: str | None = None,
    feedback: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return everything that decides the pool's pixels and scores, as a JSON-able value.

    Args:
        experiment: The config.
        names: Classes and groups.
        prompts: The prompts of every cell.
        conditions: Digest of the view that supplies condition images, if there are any.
        feedback: Identity of the guide classifier and its settings, if there is one.

    Raises:
        ConfigError, ModelError: There is no generator, or generator or scorer do not exist.
    """
    generator, pool = experiment.generator, experiment.pool
    if generator is None:
        raise ConfigError("no generator is configured", where="generator", found="null")
    check_pipeline_folder(generator)
    return {
        "format": _FORMAT,
        "names": {"classes": list(names.classes), "groups": list(names.groups)},
        "generator": {
            **identity(generator, "pixels"),
            "weights": fingerprint(generator.model, generator.revision, "generator.model"),
            "dtype": devices(experiment).dtype,
            **({"adapter": identify_adapter(adapter)} if (adapter := _adapter(generator)) else {}),
        },
        "conditions": conditions,
        "feedback": feedback,
        "prompts": prompts.prompts,
        "plain": prompts.plain,
        **identity(experiment.prompts, "pixels"),
        "scorer": identify_scorer(experiment.scorer) if experiment.scorer else None,
        **{key: value for key, value in identity(pool, "pixels").items() if key != "codec"},
        "storage": {"format": _STORAGE, "codec": pool.codec},
    }


def provenance(devices: Devices) -> dict[str, str]:
    """Return versions and devices, which may decide the last bit of a pixel; recorded with the generation."""
    return {
        **{name: version(name) for name in _LIBRARIES},
        "generator device": devices.generator,
        "scorer device": devices.scorer,
    }


def digest_of(generation: dict[str, Any]) -> str:
    """Return the address of a generation: 16 hex digits."""
    return digest(generation)


def pinned(generator: Generator, generation: dict[str, Any]) -> Generator:
    """Return the generator at the commits that a generation names, for models from the hub."""
    made = generation["generator"]
    changes: dict[str, Any] = {"revision": made["weights"].get("revision")}
    if generator.condition is not None and (adapter := generator.condition.adapter) is not None:
        adapter = adapter.model_copy(update={"revision": made["adapter"].get("revision")})
        changes["condition"] = generator.condition.model_copy(update={"adapter": adapter})
    return generator.model_copy(update=changes)
