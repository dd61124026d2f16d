"""What all parts of the tree share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, values do not change, defaults are validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
