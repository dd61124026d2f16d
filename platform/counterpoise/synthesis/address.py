"""Every synthetic image has an address before it is sampled: ``(generation digest, label, group, index)``.

The digest covers all that decides an image's pixels and scores. Images of a cell are numbered; ``shard_size`` of them
in a row are a shard, which is sampled in one batch and stored under one key. Seeds are hashes of the address.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from counterpoise.config import Adapter, Experiment, Generator, Scorer
from counterpoise.errors import ConfigError, ModelError
from counterpoise.locate import fingerprint, hash_of_file, is_folder, locate
from counterpoise.synthesis.prompts import PromptSet
from counterpoise.table import Names, digest

_FORMAT = 2  # of shards; another one is another pool
_CONDITIONED = "StableUnCLIPImg2ImgPipeline"
_LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "numpy", "pillow", "pyarrow")
_KEY = re.compile(r".*/(\d+)-(\d+)/(\d{6,})\.parquet")


@dataclass(frozen=True, order=True)
class Shard:
    """``shard_size`` images of a cell in a row, from ``number · shard_size`` on. ``group`` is 0 without groups."""

    label: int
    group: int
    number: int

    def key(self, digest: str) -> str:
        """Where the shard lies in the store."""
        return f"{folder(digest)}{self.label}-{self.group}/{self.number:06d}.parquet"

    @classmethod
    def from_key(cls, key: str) -> Shard | None:
        """The shard at a key; None if this is not a shard's key."""
        match = _KEY.fullmatch(key)
        return cls(*map(int, match.groups())) if match else None


def folder(digest: str) -> str:
    """The prefix of all keys of a generation."""
    return f"pool/{digest}/"


def seed(digest: str, label: int, group: int, index: int, attempt: int) -> int:
    """The seed of one image's noise: the first 63 bits of a SHA-256 of its address.

    PyTorch's CPU generator uses the lower 32 bits, so that among n images of a cell n² / 2³³ pairs of equal noise are
    to be expected: 0.01 among ten thousand.
    """
    text = f"{digest}/{label}/{group}/{index}/{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Devices:
    """Where generator and scorer compute, and in which precision the generator does. No more to be resolved."""

    generator: str
    dtype: str
    scorer: str


def devices(experiment: Experiment) -> Devices:
    """What ``auto`` stands for. It follows from the config alone, so that every machine finds the same address.

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
        raise ConfigError("a GPU is asked for, but none reserved", where=where, found=device, remedy=f"set {reserved}")
    return device


def generation(
    experiment: Experiment,
    names: Names,
    prompts: PromptSet,
    conditions: str | None = None,
    feedback: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All that decides the pool's pixels and scores, as a JSON-able value.

    Args:
        experiment: The config.
        names: Classes and groups.
        prompts: What is asked for.
        conditions: Digest of the view that condition images are drawn from, if there are any.
        feedback: The identity of the classifier that guides, and how it does, if it does.

    Raises:
        ConfigError, ModelError: There is no generator, or generator or scorer do not exist.
    """
    generator, pool = experiment.generator, experiment.pool
    if generator is None:
        raise ConfigError("there is nothing to sample with", where="generator", found="null")
    check_pipeline_folder(generator)
    elsewhere: Any = {"model": True, "revision": True, "device": True, "dtype": True, "condition": {"adapter"}}
    return {
        "format": _FORMAT,
        "names": {"classes": list(names.classes), "groups": list(names.groups)},
        "generator": {
            **generator.model_dump(exclude=elsewhere),
            "weights": fingerprint(generator.model, generator.revision, "generator.model"),
            "dtype": devices(experiment).dtype,
            **({"adapter": identify_adapter(adapter)} if (adapter := _adapter(generator)) else {}),
        },
        "conditions": conditions,
        "feedback": feedback,
        "prompts": prompts.prompts,
        "plain": prompts.plain,
        "negative": experiment.prompts.negative,
        "scorer": identify_scorer(experiment.scorer) if experiment.scorer else None,
        "shard_size": pool.shard_size,
        "max_attempts": pool.max_attempts,
    }


def circumstances(devices: Devices) -> dict[str, str]:
    """What may decide the last bit of a pixel and is recorded beside the generation: versions and devices."""
    return {
        **{name: version(name) for name in _LIBRARIES},
        "generator device": devices.generator,
        "scorer device": devices.scorer,
    }


def digest_of(generation: dict[str, Any]) -> str:
    """The address of a generation: 16 hex digits."""
    return digest(generation)


def pinned(generator: Generator, generation: dict[str, Any]) -> Generator:
    """The generator at the commits that a generation names, of whatever comes from the hub."""
    made = generation["generator"]
    changes: dict[str, Any] = {"revision": made["weights"].get("revision")}
    if generator.condition is not None and (adapter := generator.condition.adapter) is not None:
        adapter = adapter.model_copy(update={"revision": made["adapter"].get("revision")})
        changes["condition"] = generator.condition.model_copy(update={"adapter": adapter})
    return generator.model_copy(update=changes)


def check_pipeline_folder(generator: Generator) -> None:
    """Raises ModelError if the generator is a folder but no diffusers pipeline, or one of the other family.

    So it does if the generator's adapter is a folder without the files that are named.
    """
    if (adapter := _adapter(generator)) is not None:
        _check_adapter_folder(adapter)
    where = "generator.model"
    located = locate(generator.model, where)
    if not is_folder(located):
        return
    index = Path(located) / "model_index.json"
    remedy = "name a folder written by a pipeline's save_pretrained"
    try:
        family = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        found = f"{index}: {error}"
        raise ModelError("this folder is not a diffusers pipeline", where=where, found=found, remedy=remedy) from error
    if family is None:
        found = f"{index} without a _class_name"
        raise ModelError("this folder is not a diffusers pipeline", where=where, found=found, remedy=remedy)
    if (family == _CONDITIONED) != (generator.condition is not None and adapter is None):
        kind = "no condition" if generator.condition is None else "a condition"
        raise ModelError(
            "the pipeline and generator.condition do not fit",
            where="generator.condition",
            found=f"{kind} {'without' if adapter is None else 'with'} an adapter, and a {family}",
            allowed=f"a condition without an adapter for {_CONDITIONED}; one with an adapter, or none, for others",
        )


def identify_adapter(adapter: Adapter) -> dict[str, Any]:
    """Which weights an adapter and its image encoder have, and how much they count.

    Raises:
        ModelError: They are not there, or the hub cannot be reached.
    """
    where = "generator.condition.adapter"
    located = locate(adapter.model, f"{where}.model")
    if not is_folder(located):
        files = adapter.model_dump(include={"weights", "encoder", "scale"})
        return {**fingerprint(located, adapter.revision, f"{where}.model"), **files}
    _check_adapter_folder(adapter)
    return {
        "sha256": hash_of_file(Path(located) / adapter.weights),
        "encoder": fingerprint(str(Path(located) / adapter.encoder), where=f"{where}.encoder")["sha256"],
        "scale": adapter.scale,
    }


def _check_adapter_folder(adapter: Adapter) -> None:
    where = "generator.condition.adapter"
    located = locate(adapter.model, f"{where}.model")
    files = {"weights": adapter.weights, "encoder": f"{adapter.encoder}/config.json"}
    for key, file in files.items():
        if is_folder(located) and not (Path(located) / file).is_file():
            raise ModelError(f"the adapter has no such {key}", where=f"{where}.{key}", found=f"no {file} in {located}")


def _adapter(generator: Generator) -> Adapter | None:
    return None if generator.condition is None else generator.condition.adapter


def identify_scorer(scorer: Scorer) -> dict[str, str]:
    """Which CLIP weights a scorer has.

    Raises:
        ModelError: No such folder, no CLIP in it, or an architecture without weights.
    """
    located = locate(scorer.model, "scorer.model")
    path = Path(located.removeprefix("local-dir:"))
    if path.is_absolute():
        if not (path / "open_clip_config.json").is_file():
            found = f"no open_clip_config.json in {path}"
            raise ModelError("this folder is not a model of open_clip", where="scorer.model", found=found)
        return fingerprint(located, where="scorer.model")
    if located.startswith("hf-hub:"):
        return fingerprint(located, where="scorer.model")
    if scorer.pretrained is None:
        remedy = "set scorer.pretrained (for ViT-B-32: laion2b_s34b_b79k), or name a model with weights: hf-hub:…"
        raise ModelError("an architecture without weights scores at random", where="scorer.pretrained", remedy=remedy)
    weights = Path(scorer.pretrained).expanduser()
    if weights.is_file():
        return {"architecture": scorer.model, "sha256": hash_of_file(weights)}
    return {"architecture": scorer.model, "pretrained": scorer.pretrained}
