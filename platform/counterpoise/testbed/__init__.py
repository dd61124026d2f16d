"""A small world with known factors, and small real models that learned from it.

Everything here exists so that the platform can be tried, tested and measured without downloads or a GPU: `world` draws
labelled 32x32 images, the other modules train a `StableDiffusionPipeline` and an open_clip model on them, and `models/`
holds the trained weights in the formats of their libraries. The rest of the platform reads those directories as it
reads any other and does not know where they come from.
"""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""Where the shipped weights lie: `MODELS / pair / ("diffusion" | "clip")`, pair in ("shapes", "fashion")."""
