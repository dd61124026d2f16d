"""Identity of scorers: the weights of a CLIP model. Loads no model."""

from __future__ import annotations

from pathlib import Path

from counterpoise.config import Scorer
from counterpoise.core.model_source import fingerprint, hash_of_file, locate
from counterpoise.errors import ModelError


def identify_scorer(scorer: Scorer) -> dict[str, str]:
    """Identify the CLIP weights of a scorer.

    Raises:
        ModelError: The folder does not exist or holds no CLIP model, or an architecture is named without weights.
    """
    located = locate(scorer.model, "scorer.model")
    path = Path(located.removeprefix("local-dir:"))
    if path.is_absolute():
        if not (path / "open_clip_config.json").is_file():
            found = f"no open_clip_config.json in {path}"
            raise ModelError("the folder is not a model of open_clip", where="scorer.model", found=found)
        return fingerprint(located, where="scorer.model")
    if located.startswith("hf-hub:"):
        return fingerprint(located, where="scorer.model")
    if scorer.pretrained is None:
        remedy = "set scorer.pretrained (for ViT-B-32: laion2b_s34b_b79k), or name a model with weights: hf-hub:…"
        raise ModelError(
            "an architecture without weights would score at random", where="scorer.pretrained", remedy=remedy
        )
    weights = Path(scorer.pretrained).expanduser()
    if weights.is_file():
        return {"architecture": scorer.model, "sha256": hash_of_file(weights)}
    return {"architecture": scorer.model, "pretrained": scorer.pretrained}
