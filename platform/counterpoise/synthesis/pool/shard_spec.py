"""Specification of a pool's shards: their names, prompts and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.pool.address import Shard, noise_digest


@dataclass(frozen=True)
class ShardSpec:
    """The part of a generation that sampling, scoring and reading its shards need.

    Attributes:
        digest: The generation's address.
        noise: The address of its pixels; see :func:`counterpoise.synthesis.pool.address.noise_digest`.
        names: Names of classes and groups.
        codec: Codec of the images; see :func:`counterpoise.storage.codec.encode_image`.
        prompts: ``prompts[label][group]``: the prompts of a cell.
        plain: ``plain[label][group]``: a short description of the cell.
        negative: The negative prompt.
        shard_size: Images of a shard.
        max_attempts: Samples per image before it is quarantined.
    """

    digest: str
    noise: str
    names: LabelSpace
    codec: str
    prompts: list[list[list[str]]]
    plain: list[list[str]]
    negative: str
    shard_size: int
    max_attempts: int

    @classmethod
    def of(cls, digest: str, names: LabelSpace, generation: Mapping[str, Any]) -> ShardSpec:
        """Return the specification of a generation's shards."""
        shared = ("prompts", "plain", "negative", "shard_size", "max_attempts")
        codec = generation["storage"]["codec"]
        return cls(digest, noise_digest(generation), names, codec, **{name: generation[name] for name in shared})

    @property
    def all_plain(self) -> list[str]:
        """The plain prompts of all cells in one list, label by label."""
        return [prompt for row in self.plain for prompt in row]

    def prompts_of(self, shard: Shard) -> list[str]:
        """Return the prompt of each image of a shard: number ``index % n`` of a cell's n prompts."""
        prompts, first = self.prompts[shard.label][shard.group], shard.number * self.shard_size
        return [prompts[index % len(prompts)] for index in range(first, first + self.shard_size)]
