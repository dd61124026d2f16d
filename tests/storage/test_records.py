"""Records and the files that they name: what was stored is read, anything else is an error that names the file."""

import pytest

from counterpoise.errors import StoreError
from counterpoise.storage.records import (
    DamagedError,
    create_record,
    put_file,
    read_disposable,
    read_file,
    read_record,
    sha256,
)
from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store
from damage import DAMAGES

VALUE = {"a": 1.1, "b": [None, True, "ü"], "c": {"10": 1, "2": float("inf")}}


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


def test_a_record_is_read_as_it_was_stored_and_never_stored_twice(store):
    assert create_record(store, "one.json", VALUE)
    assert not create_record(store, "one.json", {})
    assert read_record(store, "one.json") == VALUE
    with pytest.raises(StoreError, match="nothing is stored"):
        read_record(store, "two.json")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record(store, damage):
    create_record(store, "one.json", VALUE)
    create_record(store, "two.json", VALUE)
    store.replace("one.json", DAMAGES[damage](read(store, "one.json"), read(store, "two.json")))
    with pytest.raises(DamagedError, match=r"one\.json[\s\S]*--repair"):
        read_record(store, "one.json")


def test_every_flipped_bit_of_a_record_is_found(store):
    """White space included: a record that reads the same but has other bytes is not what was stored."""
    create_record(store, "one.json", VALUE)
    sound = read(store, "one.json")
    for position in range(len(sound)):
        store.replace("one.json", sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with pytest.raises(DamagedError):
            read_record(store, "one.json")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(store, damage):
    expected = put_file(store, "file", b"content", "record")
    assert expected == sha256(b"content")
    assert read_file(store, "file", expected) == b"content"
    store.replace("file", DAMAGES[damage](b"content", b"another"))
    with pytest.raises(DamagedError, match=r"does not match[\s\S]*--repair"):
        read_file(store, "file", expected)
    store.delete("file")
    with pytest.raises(DamagedError, match="record is there"):
        read_file(store, "file", expected)


def test_a_file_is_replaced_until_its_record_is_there(store):
    put_file(store, "file", b"killed before the record", "record")
    put_file(store, "file", b"content", "record")
    create_record(store, "record", {})
    put_file(store, "file", b"too late", "record")
    assert read(store, "file") == b"content"


def test_a_damaged_disposable_is_discarded(store, capsys):
    store.replace("number", b"12")
    assert read_disposable(store, "number", int, "the number") == 12
    store.replace("number", b"1?")
    assert read_disposable(store, "number", int, "the number") is None
    assert "the number at" in capsys.readouterr().err
    assert not store.exists("number")
    assert read_disposable(store, "number", int, "the number") is None
