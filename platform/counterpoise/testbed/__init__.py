"""Testbed: training of small real models on images with known factors.

The platform can thus be tried, tested and measured without downloads or a GPU.
:mod:`counterpoise.data.procedural.world` draws labelled 32x32 images, the modules here train a
`StableDiffusionPipeline` and an open_clip model on them, and `models/` holds the trained weights in the formats of
their libraries. The rest of the platform reads those folders like any other.
"""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""Folder of the shipped weights: `MODELS / pair / ("diffusion" | "clip")`, pair in ("shapes", "fashion")."""
