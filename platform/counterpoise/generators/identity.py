"""Identity of generators: the weights of a pipeline and its adapter. Loads no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from counterpoise.config import Adapter, Generator
from counterpoise.config.identity import identity
from counterpoise.core.model_source import fingerprint, hash_of_file, is_folder, locate
from counterpoise.errors import ModelError

_CONDITIONED = "StableUnCLIPImg2ImgPipeline"


def check_pipeline_folder(generator: Generator) -> None:
    """Raise ModelError if the generator is a folder without a diffusers pipeline of the right family.

    The same is raised if the generator's adapter is a folder without the named files.
    """
    if (adapter := _adapter(generator)) is not None:
        _check_adapter_folder(adapter)
    where = "generator.model"
    located = locate(generator.model, where)
    if not is_folder(located):
        return
    index = Path(located) / "model_index.json"
    remedy = "set it to a folder written by a pipeline's save_pretrained"
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
            "generator.condition does not fit the pipeline",
            where="generator.condition",
            found=f"{kind} {'without' if adapter is None else 'with'} an adapter, and a {family}",
            allowed=f"{_CONDITIONED} with a condition and no adapter; others with an adapter, or without a condition",
        )


def identify_adapter(adapter: Adapter) -> dict[str, Any]:
    """Identify the weights of an adapter and its image encoder, and their scale.

    Raises:
        ModelError: The weights do not exist, or the hub cannot be reached.
    """
    where = "generator.condition.adapter"
    located = locate(adapter.model, f"{where}.model")
    if not is_folder(located):
        return {**fingerprint(located, adapter.revision, f"{where}.model"), **identity(adapter, "pixels")}
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
