"""Shards: sampled in one batch, scored, and written as the same bytes every time.

Plain functions on arrays and tables; :mod:`counterpoise.synthesis.pool.sampling` runs them on Ray.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from counterpoise.scoring.margin import margin, nearest, rivals_of
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.storage.schema import SYNTHETIC, LabelSpace, make_table
from counterpoise.synthesis.pool.address import Shard, seed

if TYPE_CHECKING:  # the committing worker needs neither, and importing them takes ten seconds
    from counterpoise.generators.text_to_image import Samples
    from counterpoise.scoring.clip import Clip


@dataclass(frozen=True)
class ShardSpec:
    """The part of a generation that :func:`draw` and :func:`score` need.

    Attributes:
        digest: The generation's address.
        names: Names of classes and groups.
        prompts: ``prompts[label][group]``: the prompts of a cell.
        plain: ``plain[label][group]``: a short description of the cell.
        negative: The negative prompt.
        shard_size: Images of a shard.
        max_attempts: Samples per image before it is quarantined.
    """

    digest: str
    names: LabelSpace
    prompts: list[list[list[str]]]
    plain: list[list[str]]
    negative: str
    shard_size: int
    max_attempts: int

    @property
    def all_plain(self) -> list[str]:
        """The plain prompts of all cells in one list, label by label."""
        return [prompt for row in self.plain for prompt in row]

    def prompts_of(self, shard: Shard) -> list[str]:
        """Return the prompt of each image of a shard: number ``index % n`` of a cell's n prompts."""
        prompts, first = self.prompts[shard.label][shard.group], shard.number * self.shard_size
        return [prompts[index % len(prompts)] for index in range(first, first + self.shard_size)]


@dataclass
class SampledShard:
    """A shard's pixels during sampling: for each image the last attempt, its seed and its defect."""

    pixels: list[np.ndarray]
    seeds: list[int]
    attempts: list[int]
    defects: list[str | None]
    condition_ids: list[str | None]
    criteria: list[float | None]


def draw(
    sample: Callable[[Sequence[str], str, Sequence[int]], Samples], recipe: ShardSpec, shard: Shard
) -> SampledShard:
    """Sample a shard in one batch; sample defective images again, together, with new seeds.

    The batches depend only on the shard's address and the model.
    """
    prompts, size = recipe.prompts_of(shard), recipe.shard_size
    draft = SampledShard(
        [np.empty(0, np.uint8)] * size, [0] * size, [0] * size, [None] * size, [None] * size, [None] * size
    )
    pending = list(range(size))
    for attempt in range(recipe.max_attempts):
        indices = [shard.number * size + position for position in pending]
        seeds = [seed(recipe.digest, shard.label, shard.group, index, attempt) for index in indices]
        samples = sample([prompts[position] for position in pending], recipe.negative, seeds)
        for row, position in enumerate(pending):
            draft.pixels[position], draft.defects[position] = samples.pixels[row], samples.defects[row]
            draft.seeds[position], draft.attempts[position] = seeds[row], attempt
        pending = [position for position in pending if draft.defects[position] is not None]
        if not pending:
            break
    return draft


def to_table(draft: SampledShard, recipe: ShardSpec, shard: Shard, threads: int = 1) -> pa.Table:
    """Return the shard as a table without scores; a quarantined image has a defect and no bytes."""
    usable = [defect is None for defect in draft.defects]
    with ThreadPoolExecutor(threads) as pool:
        encoded = list(
            pool.map(lambda job: encode_image(job[0]) if job[1] else None, zip(draft.pixels, usable, strict=True))
        )
    n = recipe.shard_size
    indices = [shard.number * n + position for position in range(n)]
    columns: dict[str, Sequence] = {
        "id": [f"{recipe.digest}-{shard.label}-{shard.group}-{index}" for index in indices],
        "image": encoded,
        "label": [shard.label] * n,
        "group": [shard.group if recipe.names.groups else -1] * n,
        "split": ["train"] * n,
        "source": ["synthetic"] * n,
        "index": indices,
        "prompt": recipe.prompts_of(shard),
        "seed": draft.seeds,
        "attempt": draft.attempts,
        "defect": draft.defects,
        "condition_id": draft.condition_ids,
        "criterion": draft.criteria,
        **{field.name: [None] * n for field in SYNTHETIC if field.name.startswith("clip_")},
    }
    return make_table(columns, SYNTHETIC, recipe.names)


def score(clip: Clip, texts: Float[np.ndarray, "m d"], recipe: ShardSpec, shard: Shard, table: pa.Table) -> pa.Table:
    """Return the table with CLIP's scores, from one batch; a quarantined image has none.

    Args:
        clip: The scorer.
        texts: The scorer's unit vectors of ``recipe.all_plain``, which the margin compares. The similarity is that with
            the image's own prompt.
        recipe: Specification of the generation's shards.
        shard: The shard in ``table``.
        table: The result of :func:`to_table`.
    """
    usable = np.flatnonzero(table["image"].is_valid())
    if not len(usable):
        return table
    images = clip.embed_images([decode_image(table["image"][int(row)].as_py()) for row in usable])
    columns = len(recipe.plain[0])
    cell = shard.label * columns + shard.group
    rivals = rivals_of(cell, recipe.all_plain)
    prompts = np.stack([clip.embed_text(table["prompt"][int(row)].as_py()) for row in usable])
    best = nearest(images, texts, cell, rivals)
    scores: dict[str, np.ndarray | list] = {
        "clip_similarity": (images * prompts).sum(axis=1),
        "clip_margin": margin(images, texts, cell, rivals),
        "clip_label": best // columns,
        "clip_group": best % columns if recipe.names.groups else np.full(len(best), -1),
        "clip_embedding": list(images.astype(np.float16)),
    }
    ranks = np.full(len(table), -1)
    ranks[usable] = np.arange(len(usable))
    order = pa.array(ranks, pa.int32(), mask=ranks < 0)  # a null here becomes a null in the column
    for name, values in scores.items():
        position = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(position, field, pa.array(values, field.type).take(order))
    return table


def content_hash(table: pa.Table) -> str:
    """Return SHA-256, in hex, of all values of all columns; stored in a shard's file for ``verify``."""
    sha = hashlib.sha256()
    for name in sorted(table.column_names):
        for value in [name, *table[name].to_pylist()]:
            data = value if isinstance(value, bytes) else repr(value).encode()
            sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()


def to_parquet(table: pa.Table) -> bytes:
    """Return the bytes of a shard's file, the same for equal tables and the same version of pyarrow.

    The hash of the content is in the metadata, as ``sha256``.
    """
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({**table.schema.metadata, b"sha256": content_hash(table).encode()})
    pq.write_table(table, buffer, compression="none", use_dictionary=False, row_group_size=len(table))
    return buffer.getvalue()


def to_ipc(table: pa.Table) -> bytes:
    """Serialise the table, for transfer from worker to worker."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_ipc(data: bytes) -> pa.Table:
    """Return the table that :func:`to_ipc` serialised."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
