"""Rows of a pool's index as the columns of a view."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from counterpoise.storage.schema import VIEW
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.index import PoolIndex
from counterpoise.synthesis.pool.shard_file import HEAD, PLACES, VALUES
from counterpoise.synthesis.pool.shard_spec import ShardSpec


def rows_table(index: PoolIndex, recipe: ShardSpec, rows: Int[np.ndarray, " n"]) -> pa.Table:
    """Return the columns of :class:`counterpoise.storage.view.ImageView` for rows of an index, in this order.

    Besides those of every view: ``index`` (the image's number in its cell), ``prompt``, the values of
    :data:`counterpoise.synthesis.pool.shard_file.VALUES`, and the places of CLIP's vectors.
    """
    ranks, row = np.divmod(rows, index.shard_size)
    label, group, number = (index.by_shard(name)[ranks].astype(np.int64) for name in ("label", "group", "number"))
    in_cell = number * index.shard_size + row
    shown_group = group if recipe.names.groups else np.full_like(group, -1)
    constant = np.zeros(len(rows), np.int32)
    columns = {
        "id": _ids(recipe.digest, label, group, in_cell),
        "label": pa.array(label, pa.int32()),
        "group": pa.array(shown_group, pa.int32()),
        "split": pa.DictionaryArray.from_arrays(constant, ["train"]),
        "source": pa.DictionaryArray.from_arrays(constant, ["synthetic"]),
        "key": _keys(index, ranks),
        "row": pa.array(row, pa.int32()),
        "index": pa.array(in_cell, pa.int64()),
        "prompt": _prompts(recipe, label, group, in_cell),
    }
    taken = pa.array(rows, pa.int64())
    columns |= {name: index.column(name).take(taken).combine_chunks() for name, _ in [*VALUES, *PLACES]}
    order = dict.fromkeys([*VIEW.names, "index", "prompt", *columns])
    return pa.table({name: columns[name] for name in order})


def _ids(digest: str, *numbers: Int[np.ndarray, " n"]) -> pa.Array:
    texts = [pa.array(number, pa.int64()).cast(pa.string()) for number in numbers]
    return pc.binary_join_element_wise(digest, *texts, "-")


def _keys(index: PoolIndex, ranks: Int[np.ndarray, " n"]) -> pa.DictionaryArray:
    used, codes = np.unique(ranks, return_inverse=True)
    addresses = zip(*(index.by_shard(name)[used].tolist() for name in HEAD), strict=True)
    keys = [Shard(*address).key(index.digest) for address in addresses]
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(keys, pa.string()))


def _prompts(
    recipe: ShardSpec, label: Int[np.ndarray, " n"], group: Int[np.ndarray, " n"], index: Int[np.ndarray, " n"]
) -> pa.DictionaryArray:
    """Return the prompt of each image: number ``index % n`` of its cell's n prompts."""
    cells = [prompts for row in recipe.prompts for prompts in row]
    texts = list(dict.fromkeys(prompt for prompts in cells for prompt in prompts))
    codes = {text: code for code, text in enumerate(texts)}
    flat = np.array([codes[prompt] for prompts in cells for prompt in prompts], np.int32)
    counts = np.array([len(prompts) for prompts in cells], np.int64)
    first, cell = np.cumsum(counts) - counts, label * len(recipe.prompts[0]) + group
    return pa.DictionaryArray.from_arrays(
        pa.array(flat[first[cell] + index % counts[cell]], pa.int32()), pa.array(texts, pa.string())
    )
