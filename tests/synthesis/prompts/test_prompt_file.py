"""Prompt files: there and back, and what is wrong with those that people write."""

import json
from pathlib import Path

import pytest

from counterpoise.errors import ConfigError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.prompt_file import read_prompts, write_prompts

NAMES = LabelSpace(("star", "7"), ("red", "blue"))
PROMPTS = [[["a red star", "été: “rouge”, # 1"], ["a blue star"]], [["a red 7"], ["- yes"]]]


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".jsonl"])
def test_there_and_back(tmp_path, suffix):
    path = str(tmp_path / "folder" / f"prompts{suffix}")
    assert write_prompts(path, PROMPTS, NAMES, "here")
    assert read_prompts(path, NAMES) == PROMPTS


def test_without_groups(tmp_path):
    path, names = str(tmp_path / "p.jsonl"), LabelSpace(("star",))
    write_prompts(path, [[["one", "two"]]], names, "here")
    assert [json.loads(line) for line in Path(path).read_text().splitlines()] == [
        {"label": "star", "prompt": "one"},
        {"label": "star", "prompt": "two"},
    ]
    assert read_prompts(path, names) == [[["one", "two"]]]


def test_what_a_person_may_write(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(
        "# mine\n- {label: 7, group: red, prompt: x}\n- {label: star, group: red, prompt: 'a  b '}\n"
        "- {label: star, group: blue, prompt: c}\n- {label: 7, group: blue, prompt: d}\n"
        "- {label: 7, group: red, prompt: y}\n"
    )
    assert read_prompts(str(file), NAMES) == [[["a b"], ["c"]], [["x", "y"], ["d"]]]


def test_an_edited_file_is_never_overwritten(tmp_path):
    file = tmp_path / "p.yaml"
    assert write_prompts(str(file), PROMPTS, NAMES, "here")
    assert write_prompts(str(file), PROMPTS, NAMES, "here")
    file.write_text("# edited\n" + file.read_text())
    assert not write_prompts(str(file), PROMPTS, NAMES, "here")
    assert file.read_text().startswith("# edited")


ROW = {"label": "star", "group": "red", "prompt": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [", "not YAML"),
        ("label: star", "not a list"),
        ("", "not a list"),
        ("- star", "not a mapping"),
        ("- {label: star, group: red}", "this row has no prompt"),
        ("- {label: star, prompt: x}", "this row has no group"),
        ("- {label: stra, group: red, prompt: x}", "did you mean 'star'"),
        ("- {label: star, group: yes, prompt: x}", "in quotes"),
        ("- {label: star, group: green, prompt: x}", "red, blue"),
        ("- {label: star, group: red, promt: x, prompt: y}", "did you mean 'prompt'"),
        ("- {label: star, group: red, prompt: 3}", "a prompt must be a non-empty text"),
        ("- {label: star, group: red, prompt: ' '}", "a prompt must be a non-empty text"),
        ("- {label: star, group: red, prompt: x}\n" * 2, "row 2"),
        ("- {label: star, group: red, prompt: x}", "none for star × blue, 7 × red, 7 × blue"),
    ],
)
def test_mistakes(tmp_path, text, message):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_prompts(str(file), NAMES)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_mistakes_in_lines(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n\n{{\n")
    with pytest.raises(ConfigError, match="not JSON") as caught:
        read_prompts(str(file), NAMES)
    assert "line 3" in caught.value.where


def test_files_that_are_none(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("- é".encode("latin-1"))
    cases = [("none.yaml", "cannot be read"), ("p.csv", "YAML or JSONL"), ("latin.yaml", "UTF-8")]
    for name, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            read_prompts(str(tmp_path / name), NAMES)
        assert "prompts.file" in str(caught.value.where)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_prompts(str(tmp_path / "latin.yaml" / "p.yaml"), PROMPTS, NAMES, "here")
