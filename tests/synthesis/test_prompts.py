"""What each cell asks of the generator."""

import pytest

from counterpoise.config import Prompts
from counterpoise.errors import ConfigError
from counterpoise.synthesis.prompts import cell_prompts
from counterpoise.table import Names

NAMES = Names(("star", "polar_bear"), ("red", "blue"))


def test_a_prompt_for_every_cell():
    assert cell_prompts(Prompts(), NAMES) == [
        ["a photo of a red star", "a photo of a blue star"],
        ["a photo of a red polar bear", "a photo of a blue polar bear"],
    ]


def test_words_replace_names():
    prompts = Prompts(template="{label}, {group}", labels={"star": "a star_fish"}, groups={"red": "on coral"})
    assert cell_prompts(prompts, NAMES)[0] == ["a star_fish, on coral", "a star_fish, blue"]


def test_without_groups_the_group_is_left_out():
    assert cell_prompts(Prompts(), Names(("star",))) == [["a photo of a star"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "a {colour} {label}"}, "{colour}"),
        ({"template": "a {} {label}"}, "unknown word in braces"),
        ({"template": "a {label"}, "cannot be read"),
        ({"template": "a {group} thing"}, "same for every class"),
        ({"template": "a {label}"}, "same for every group"),
        ({"labels": {"stars": "x"}}, "did you mean 'star'"),
        ({"groups": {"green": "x"}}, "red, blue"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError) as caught:
        cell_prompts(Prompts(**changes), NAMES)
    assert message in str(caught.value)
    assert "prompts." in str(caught.value.where)
