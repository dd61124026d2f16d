"""Damage of stored files: the content that a file has afterwards, from its own and another one's of the same kind."""


def _flipped(data, _):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "truncated": lambda data, _: data[: len(data) // 2],
    "emptied": lambda *_: b"",
    "one bit flipped": _flipped,
    "replaced": lambda _, other: other,
}
