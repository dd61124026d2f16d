"""Adapters of dataset formats. Each is one function from its section of the configuration to a Source."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from counterpoise import config
from counterpoise.data.adapters.folders import csv_folder, image_folder
from counterpoise.data.adapters.hub import hugging_face
from counterpoise.data.adapters.parquet import parquet_table
from counterpoise.data.adapters.procedural import testbed
from counterpoise.data.adapters.source import Picture, Rows, Source
from counterpoise.data.adapters.vision import torchvision_dataset
from counterpoise.errors import DataError

ADAPTERS: dict[str, Callable[[Any], Source]] = {
    "csv": csv_folder,
    "parquet": parquet_table,
    "imagefolder": image_folder,
    "torchvision": torchvision_dataset,
    "huggingface": hugging_face,
    "testbed": testbed,
}


def open_source(data: config.Data) -> Source:
    """Open the dataset that the configuration names. Raises DataError if it does not exist."""
    with _readable():
        source = ADAPTERS[data.adapter](data)
    return Source(source.fingerprint, _readable()(source.rows))


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "check the path and its permissions"
        raise DataError(
            "the dataset cannot be read", where=error.filename or "data", found=error.strerror or error, remedy=remedy
        ) from error


__all__ = ["ADAPTERS", "Picture", "Rows", "Source", "open_source"]
