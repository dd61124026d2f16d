"""Overrides of the command line: text is taken whole, everything else is YAML."""

import datetime

import pytest

from counterpoise.config.overrides import parse_override
from counterpoise.errors import ConfigError

TEXTS = [
    "/x/my store #1", "#1", "/x/#1", "a # b # c", "5 #five", "%41", "/x/100%", "@x", "*.png", "&x", "a&b", "|", ">x",
    "`x`", "/x/what?x=1", "s3://b/exp#1", "a  b", " a", "a ", "a\nb", "a=b", "~x", "it's", "ä ß", "-x",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_whole(text):
    assert parse_override(f"store={text}") == (("store",), text)


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("[a, b]", ["a", "b"]),
        ("{a: 1, b: [2]}", {"a": 1, "b": [2]}),
        ("a: b", {"a": "b"}),
        ('"a # b"', "a # b"),
        ("'5'", "5"),
        ('["a # b", c#d]', ["a # b", "c#d"]),
        ("!!str 5", "5"),
        ("2024-01-02", datetime.date(2024, 1, 2)),
        ("- a\n- b", ["a", "b"]),
    ],
)
def test_everything_else_is_yaml(value, parsed):
    assert parse_override(f"a.b={value}") == (("a", "b"), parsed)


@pytest.mark.parametrize("value", ["[a] #b", "{a: 1} # b", "a: b #c", '"a" #b', "[a, #b\nc]", "- a #b\n- c"])
def test_a_comment_is_not_dropped_without_a_word(value):
    with pytest.raises(ConfigError, match="an override has no comments"):
        parse_override(f"key={value}")


def test_what_is_not_yaml_says_how_to_write_text():
    with pytest.raises(ConfigError, match="in quotes"):
        parse_override("key=[a #b]")
