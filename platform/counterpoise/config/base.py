"""Base class of all config sections, and the marks of the artifacts that a key decides.

Every key decides one of these. The first five have addresses in the store, which
:mod:`counterpoise.config.identity` derives from the marks.

- ``source``: the dataset, its real images and their splits.
- ``pixels``: synthetic images and their scores, that is, their pool.
- ``selection``: the images of the pool that a plan takes.
- ``weights``: trained stages.
- ``metrics``: evaluation, and measurements of realism.
- ``place``: locations and display names. Decides no result.
- ``runtime``: workers, devices, reservations, tracking, tolerance of defects. Decides no result.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


def _spelled_out(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


# of a union of sections told apart by `name`: a bare word is short for {name: word}
OR_WORD = BeforeValidator(_spelled_out)

Decision = Literal["source", "pixels", "selection", "weights", "metrics", "place", "runtime"]


class Decides:
    """Mark of a key that decides other artifacts than its section does, or that enters addresses in resolved form.

    Args:
        what: The artifacts that the key decides; by default those of its section. Classes and groups decide two, as a
            pool's address contains their names.
        resolved: True if addresses contain the resolved value instead of the key's own: the fingerprint of the model
            that it names, the digest of the images that it leads to, or the default that it leaves open. On a
            section, it applies to all keys in it.
    """

    def __init__(self, *what: Decision, resolved: bool = False) -> None:
        self.what, self.resolved = what, resolved


RESOLVED = Decides(resolved=True)


class Section(BaseModel):
    """Section of the configuration. Unknown keys are errors, values are immutable, defaults are validated too.

    A subclass declares the artifacts that its keys decide, ``class Generator(Section, decides="pixels")``, and marks
    exceptions: ``device: Annotated[str, Decides("runtime")]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    own_decisions: ClassVar[dict[str, tuple[Decision, ...]]] = {}  # by key, without exceptions

    def __init_subclass__(cls, decides: Decision | tuple[Decision, ...] = (), **settings: Any) -> None:
        super().__init_subclass__(**settings)
        what = (decides,) if isinstance(decides, str) else decides
        cls.own_decisions = {**cls.own_decisions, **dict.fromkeys(inspect.get_annotations(cls), what)}
