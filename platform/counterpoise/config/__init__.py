"""Validated sections of an experiment: the meaning, range and default of each key.

:mod:`counterpoise.config.compose` builds experiments from YAML files and command-line overrides. Every section
rejects unknown keys. Wrong values are reported here, before any data is read or any model is loaded.
"""

from __future__ import annotations

from counterpoise.config.base import NonNegativeInt, Section, Share
from counterpoise.config.data import (
    Biased,
    Columns,
    Counts,
    CsvFolder,
    Data,
    Dataset,
    HuggingFace,
    ImageFolder,
    Imbalance,
    LongTailed,
    ParquetTable,
    Splits,
    Testbed,
    Tint,
    Torchvision,
)
from counterpoise.config.experiment import Evaluation, Experiment, Realism, Tracking
from counterpoise.config.objectives import Loss, Objective, Risk
from counterpoise.config.plans import Plan
from counterpoise.config.prompts import Contextual, Llm, Prompts
from counterpoise.config.synthesis import (
    ActorResources,
    Adapter,
    Condition,
    Feedback,
    Generator,
    Pool,
    Scorer,
    Selection,
)
from counterpoise.config.trainable import Trainable
from counterpoise.config.training import (
    GROUP_METRICS,
    Dfr,
    Mix,
    Mixture,
    Optimizer,
    Schedule,
    SelectBy,
    Stage,
    Training,
    Transform,
)

__all__ = [
    "GROUP_METRICS",
    "ActorResources",
    "Adapter",
    "Biased",
    "Columns",
    "Condition",
    "Contextual",
    "Counts",
    "CsvFolder",
    "Data",
    "Dataset",
    "Dfr",
    "Evaluation",
    "Experiment",
    "Feedback",
    "Generator",
    "HuggingFace",
    "ImageFolder",
    "Imbalance",
    "Llm",
    "LongTailed",
    "Loss",
    "Mix",
    "Mixture",
    "NonNegativeInt",
    "Objective",
    "Optimizer",
    "ParquetTable",
    "Plan",
    "Pool",
    "Prompts",
    "Realism",
    "Risk",
    "Schedule",
    "Scorer",
    "Section",
    "SelectBy",
    "Selection",
    "Share",
    "Splits",
    "Stage",
    "Testbed",
    "Tint",
    "Torchvision",
    "Tracking",
    "Trainable",
    "Training",
    "Transform",
]
