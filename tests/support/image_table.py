"""A stored table of given images, as the import of a dataset leaves it."""

import tempfile
from pathlib import Path

import pyarrow as pa

from counterpoise.data.table import TableFiles, TableWriter, read_view
from counterpoise.storage.view import ImageView


def store_images(store, address, images, labels, groups, names, *, ids=None, splits=None, source="real", group_size=64):
    """Store encoded images as ``tables/ADDRESS``, in row groups of ``group_size``. Returns the view of all of them."""
    count = len(images)
    rows = pa.table(
        {
            "id": pa.array(ids or [f"{address}/{number}" for number in range(count)], pa.string()),
            "label": pa.array(labels, pa.int32()),
            "group": pa.array(groups, pa.int32()),
            "split": pa.array(splits or ["train"] * count, pa.string()),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        writer = TableWriter(store, TableFiles(address), Path(folder))
        for start in range(0, count, group_size):
            part = slice(start, start + group_size)
            writer.write(images[part], rows.slice(start, group_size))
        writer.finish(names, pa.table({"id": pa.array([], pa.string())}))
    view = read_view(store, TableFiles(address))
    if source == "real":
        return view
    values = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [source])
    index = view.index.set_column(view.index.schema.get_field_index("source"), "source", values)
    return ImageView(store, names, index)
