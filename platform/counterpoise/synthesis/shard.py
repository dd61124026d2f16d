"""What a shard is and how it is made: sampled in one batch, scored, and written as the same bytes every time.

Plain functions on arrays and tables; :mod:`counterpoise.synthesis.sampling` runs them on Ray.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from counterpoise.scoring.margin import rivals_of, similarity_and_margin
from counterpoise.synthesis.address import Shard, seed
from counterpoise.table import SYNTHETIC, Names, decode_image, encode_image, make_table

if TYPE_CHECKING:  # the worker that commits needs neither, and would take ten seconds to import them
    from counterpoise.generators.text_to_image import Samples
    from counterpoise.scoring.clip import Clip


@dataclass(frozen=True)
class Recipe:
    """What :func:`draw` and :func:`score` need to know of a generation.

    Attributes:
        digest: The generation's address.
        names: Of classes and groups.
        prompts: ``prompts[label][group]``: the prompts of a cell.
        plain: ``plain[label][group]``: the cell in a few words.
        negative: The negative prompt.
        shard_size: Images of a shard.
        max_attempts: Samples per image before it is quarantined.
    """

    digest: str
    names: Names
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
        """The prompt of each image of a shard: of a cell's n prompts, number ``index % n``."""
        prompts, first = self.prompts[shard.label][shard.group], shard.number * self.shard_size
        return [prompts[index % len(prompts)] for index in range(first, first + self.shard_size)]


@dataclass
class Draft:
    """A shard's pixels as they are sampled: for each image the last attempt, its seed and what is wrong with it."""

    pixels: list[np.ndarray]
    seeds: list[int]
    attempts: list[int]
    defects: list[str | None]


def draw(sample: Callable[[Sequence[str], str, Sequence[int]], Samples], recipe: Recipe, shard: Shard) -> Draft:
    """Samples a shard in one batch. Defective images are sampled again, together, with seeds of their own.

    The batches follow from the shard's address and the model alone.
    """
    prompts, size = recipe.prompts_of(shard), recipe.shard_size
    draft = Draft([np.empty(0, np.uint8)] * size, [0] * size, [0] * size, [None] * size)
    wanted = list(range(size))
    for attempt in range(recipe.max_attempts):
        indices = [shard.number * size + position for position in wanted]
        seeds = [seed(recipe.digest, shard.label, shard.group, index, attempt) for index in indices]
        samples = sample([prompts[position] for position in wanted], recipe.negative, seeds)
        for row, position in enumerate(wanted):
            draft.pixels[position], draft.defects[position] = samples.pixels[row], samples.defects[row]
            draft.seeds[position], draft.attempts[position] = seeds[row], attempt
        wanted = [position for position in wanted if draft.defects[position] is not None]
        if not wanted:
            break
    return draft


def to_table(draft: Draft, recipe: Recipe, shard: Shard, threads: int = 1) -> pa.Table:
    """The shard as a table without scores. A quarantined image has a defect and no bytes."""
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
        "clip_similarity": [None] * n,
        "clip_margin": [None] * n,
    }
    return make_table(columns, SYNTHETIC, recipe.names)


def score(clip: Clip, texts: Float[np.ndarray, "m d"], recipe: Recipe, shard: Shard, table: pa.Table) -> pa.Table:
    """The table with CLIP's similarities and margins; a quarantined image has none.

    Args:
        clip: The scorer.
        texts: Its unit vectors of ``recipe.all_plain``: what the margin compares. The similarity is that with the
            image's own prompt.
        recipe: Of the generation.
        shard: Which one ``table`` is.
        table: From :func:`to_table`.
    """
    usable = [row for row, image in enumerate(table["image"]) if image.is_valid]
    similarities: list[float | None] = [None] * len(table)
    margins: list[float | None] = [None] * len(table)
    if usable:
        images = clip.embed_images([decode_image(table["image"][row].as_py()) for row in usable])
        own = shard.label * len(recipe.plain[0]) + shard.group
        _, leads = similarity_and_margin(images, texts, own, rivals_of(own, recipe.all_plain))
        cosines = (images * np.stack([clip.embed_text(table["prompt"][row].as_py()) for row in usable])).sum(axis=1)
        for row, cosine, lead in zip(usable, cosines, leads, strict=True):
            similarities[row], margins[row] = float(cosine), float(lead)
    for name, values in (("clip_similarity", similarities), ("clip_margin", margins)):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(name), pa.array(values, pa.float32()))
    return table


def to_parquet(table: pa.Table) -> bytes:
    """The bytes of a shard's file: for equal tables and the same version of pyarrow always the same."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False, row_group_size=len(table))
    return buffer.getvalue()


def to_ipc(table: pa.Table) -> bytes:
    """The table in one piece, for the way from worker to worker."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_ipc(data: bytes) -> pa.Table:
    """The table that :func:`to_ipc` packed."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
