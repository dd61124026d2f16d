"""Passwords in addresses do not reach messages."""

import pytest

from counterpoise.core.addresses import without_passwords


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:secret@host:5000/x", "https://***@host:5000/x"),
        ("cannot reach https://token@host, nor postgresql+psycopg://u:p@db/m?x=1", None),
        ("https://user:se/cr@et@host/x", "https://***@host/x"),
        ("https://user:@host/x", "https://***@host/x"),
        ("postgresql://db/m?user=u&password=secret&ssl=1", "postgresql://db/m?user=u&password=***&ssl=1"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("sqlite:////x/a@b.db", "sqlite:////x/a@b.db"),
        ("/a/folder://x", "/a/folder://x"),
        ("me@example.com", "me@example.com"),
    ],
)
def test_without_passwords(text, expected):
    if expected is None:
        expected = "cannot reach https://***@host, nor postgresql+psycopg://***@db/m?x=1"
    assert without_passwords(text) == expected
