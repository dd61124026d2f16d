"""Shards: sampled in one batch, scored, and written as the same bytes every time.

Plain functions on arrays and tables; :mod:`counterpoise.synthesis.pool.sampling` runs them on Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from counterpoise.scoring.margin import margin, nearest, rivals_of
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.synthesis.pool.address import Shard, seed
from counterpoise.synthesis.pool.shard_file import SHARD
from counterpoise.synthesis.pool.shard_spec import ShardSpec

if TYPE_CHECKING:  # the committing worker needs neither, and importing them takes ten seconds
    from counterpoise.generators.text_to_image import Samples
    from counterpoise.scoring.clip import Clip


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
        seeds = [seed(recipe.noise, shard.label, shard.group, index, attempt) for index in indices]
        samples = sample([prompts[position] for position in pending], recipe.negative, seeds)
        for row, position in enumerate(pending):
            draft.pixels[position], draft.defects[position] = samples.pixels[row], samples.defects[row]
            draft.seeds[position], draft.attempts[position] = seeds[row], attempt
        pending = [position for position in pending if draft.defects[position] is not None]
        if not pending:
            break
    return draft


def to_table(draft: SampledShard, recipe: ShardSpec, threads: int = 1) -> pa.Table:
    """Return the shard's rows without scores, with the columns of :data:`SHARD`; a quarantined image has no bytes."""
    usable = [defect is None for defect in draft.defects]
    with ThreadPoolExecutor(threads) as pool:
        encoded = list(
            pool.map(
                lambda job: encode_image(job[0], recipe.codec) if job[1] else None,
                zip(draft.pixels, usable, strict=True),
            )
        )
    columns: dict[str, Sequence] = {
        "image": encoded,
        "seed": draft.seeds,
        "attempt": draft.attempts,
        "defect": draft.defects,
        "condition_id": draft.condition_ids,
        "criterion": draft.criteria,
    }
    nothing = [None] * recipe.shard_size
    return pa.table({name: columns.get(name, nothing) for name in SHARD.names}, schema=SHARD)


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
    own = recipe.prompts_of(shard)
    prompts = np.stack([clip.embed_text(own[row]) for row in usable])
    best = nearest(images, texts, cell, rivals)
    scores: dict[str, np.ndarray | list] = {
        "clip_similarity": (images * prompts).sum(axis=1),
        "clip_margin": margin(images, texts, cell, rivals),
        "clip_label": best // columns,
        "clip_group": best % columns if recipe.names.groups else np.full(len(best), -1),
        "embedding": [vector.tobytes() for vector in images.astype("<f2")],
    }
    ranks = np.full(len(table), -1)
    ranks[usable] = np.arange(len(usable))
    order = pa.array(ranks, pa.int32(), mask=ranks < 0)  # a null here becomes a null in the column
    for name, values in scores.items():
        position = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(position, field, pa.array(values, field.type).take(order))
    return table


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
