"""The parts that all sections of the tree share: their base class, and the marks that say what a key decides.

Every key decides one of these. The first five have addresses in the store; :mod:`counterpoise.config.identity` takes
from here what belongs into each address.

- ``source``: the dataset, its real images and their splits.
- ``pixels``: synthetic images and their scores, that is, which pool they come from.
- ``selection``: the images of the pool that a plan takes.
- ``weights``: trained stages.
- ``metrics``: evaluation, and measurements of realism.
- ``place``: where something lies, or a name for people. Decides no result.
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
    """The mark of a key that decides something other than its section says, or enters an address in another form.

    Args:
        what: What the key decides; left out, what its section says. Classes and groups decide two things: a pool's
            address has their names.
        resolved: Whether addresses have, instead of the key's value, what it comes to: the fingerprint of the model
            that it names, the digest of the images that it leads to, the default that it leaves open. Of a section,
            this holds for all keys in it.
    """

    def __init__(self, *what: Decision, resolved: bool = False) -> None:
        self.what, self.resolved = what, resolved


RESOLVED = Decides(resolved=True)


class Section(BaseModel):
    """Section of the configuration. Unknown keys are errors, values are immutable, defaults are validated too.

    A subclass says what its keys decide, ``class Generator(Section, decides="pixels")``, and marks the exceptions:
    ``device: Annotated[str, Decides("runtime")]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    own_decisions: ClassVar[dict[str, tuple[Decision, ...]]] = {}  # by key, without exceptions

    def __init_subclass__(cls, decides: Decision | tuple[Decision, ...] = (), **settings: Any) -> None:
        super().__init_subclass__(**settings)
        what = (decides,) if isinstance(decides, str) else decides
        cls.own_decisions = {**cls.own_decisions, **dict.fromkeys(inspect.get_annotations(cls), what)}
