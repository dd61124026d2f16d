"""Words and templates: what each cell asks of the generator."""

import pytest
from pydantic import ValidationError

from counterpoise.config import Prompts
from counterpoise.errors import ConfigError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.prompt_set import PromptSet, fill, plain_prompts, template_prompts

NAMES = LabelSpace(("star", "polar_bear"), ("red", "blue"))


def test_a_prompt_for_every_cell():
    expected = [
        ["a photo of a red star", "a photo of a blue star"],
        ["a photo of a red polar bear", "a photo of a blue polar bear"],
    ]
    assert plain_prompts(Prompts(), NAMES) == expected
    assert template_prompts(Prompts(), NAMES) == [[[prompt] for prompt in row] for row in expected]


def test_words_replace_names():
    prompts = Prompts(template="{label}, {group}", labels={"star": "a star_fish"}, groups={"red": "on coral"})
    assert plain_prompts(prompts, NAMES)[0] == ["a star_fish, on coral", "a star_fish, blue"]


def test_without_groups_the_group_is_left_out():
    assert plain_prompts(Prompts(), LabelSpace(("star",))) == [["a photo of a star"]]


def test_modifiers_stand_before_the_class_unless_the_template_says_where():
    assert Prompts(modifiers=["big"], template="a {group} {label}").template == "a {group} {modifier} {label}"
    assert Prompts(modifiers=["big"], template="{modifier} {label}").template == "{modifier} {label}"


def test_a_prompt_for_each_modifier():
    """SYNAuG: "a photo of {modifier} {label}"."""
    prompts = Prompts(template="a photo of a {modifier} {label}, {group}", modifiers=["shiny", "", "tiny"])
    assert template_prompts(prompts, NAMES)[0][1] == [
        "a photo of a shiny star, blue",
        "a photo of a star, blue",
        "a photo of a tiny star, blue",
    ]
    assert plain_prompts(prompts, NAMES)[0][1] == "a photo of a star, blue"
    own = {"star": ["shiny"], "polar_bear": ["furry", "hungry"]}
    prompts = Prompts(template="a {modifier} {group} {label}", modifiers=own)
    assert template_prompts(prompts, NAMES) == [
        [["a shiny red star"], ["a shiny blue star"]],
        [
            ["a furry red polar bear", "a hungry red polar bear"],
            ["a furry blue polar bear", "a hungry blue polar bear"],
        ],
    ]


def test_descriptions_are_not_in_the_plain_prompt():
    described = {"star": "a shape with five spikes", "polar_bear": ""}
    prompts = Prompts(template="a {group} {label} ({description}), drawn", descriptions=described)
    assert [row[0][0] for row in template_prompts(prompts, NAMES)] == [
        "a red star (a shape with five spikes), drawn",
        "a red polar bear, drawn",
    ]
    assert plain_prompts(prompts, NAMES)[0][0] == "a red star, drawn"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {x} star", "a star"),
        ("a star, {x}, at night", "a star, at night"),
        ("a star, {x}", "a star"),
        ("{x}, {x}; a star", "a star"),
        ("a star ({x}).", "a star."),
        ("a star , at night", "a star, at night"),
    ],
)
def test_what_empty_words_leave_behind_is_tidied(template, text):
    assert fill(template, x="") == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "a {colour} {label}"}, "{colour}"),
        ({"template": "a {} {label}"}, "unknown word in braces"),
        ({"template": "a {label"}, "cannot be read"),
        ({"template": "a {label!z} {group}"}, "cannot be read"),
        ({"template": "a {group} thing"}, "same for every class"),
        ({"template": "a {label}"}, "same for every group"),
        ({"labels": {"stars": "x"}}, "did you mean 'star'"),
        ({"groups": {"green": "x"}}, "red, blue"),
        ({"template": "a {modifier} {group} {label}"}, "uses modifiers, but there are none"),
        ({"template": "a {group} {label}, {description}"}, "uses descriptions, but there are none"),
        ({"descriptions": {"star": "x", "polar_bear": "y"}}, "does not use the descriptions"),
        ({"template": "{modifier} {group} {label}", "modifiers": {"star": ["big"]}}, "nothing for polar_bear"),
        ({"template": "{modifier} {group} {label}", "modifiers": {"stra": ["big"]}}, "did you mean 'star'"),
        ({"template": "{group} {label} {description}", "descriptions": {"star": "x"}}, "nothing for polar_bear"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError) as caught:
        template_prompts(Prompts(**changes), NAMES)
    assert message in str(caught.value)
    assert "prompts." in str(caught.value.where)


LLM = {"model": "m", "endpoint": "http://host/v1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "p.yaml", "modifiers": ["big"]}, "found file and modifiers"),
        ({"file": "p.yaml", "contextual": {"llm": LLM}}, "found file and contextual"),
        ({"file": "p.yaml", "descriptions": {"star": "x"}}, "descriptions"),
        ({"modifiers": ["big", "big"]}, "'big' twice"),
        ({"modifiers": {"star": []}}, "at least 1"),
        ({"contextual": {}}, "either `llm` or `attributes`"),
        ({"contextual": {"llm": LLM, "attributes": {"pose": ["up"]}}}, "either `llm` or `attributes`"),
        ({"contextual": {"attributes": {"pose": []}}}, "at least 1"),
        ({"contextual": {"attributes": {"pose": ["up", "up"]}}}, "'up' twice"),
        ({"contextual": {"attributes": {"label": ["up"]}}}, "invalid attribute name 'label'"),
        ({"contextual": {"attributes": {"pose": ["up"]}, "task": "faces"}}, "`task`"),
        ({"contextual": {"number": 0, "attributes": {"pose": ["up"]}}}, "greater than 0"),
        ({"contextual": {"llm": {**LLM, "endpoint": "host:80"}}}, "endpoint"),
        ({"contextual": {"llm": {**LLM, "num_gpus": 1}}}, "`num_gpus` applies to a local model"),
        ({"contextual": {"llm": {"model": "m", "api_key_env": "KEY"}}}, "`api_key_env` applies to an endpoint"),
        ({"contextual": {"llm": {"model": "m", "seed": None}}}, "needs a `seed`"),
    ],
)
def test_impossible_combinations(changes, message):
    with pytest.raises(ValidationError) as caught:
        Prompts(**changes)
    assert message in str(caught.value)


# -- sets --------------------------------------------------------------------------------------------------------------


def test_a_set_says_what_it_is():
    one = PromptSet([[["a", "b"], ["c"]]], [["a", "c"]], "the template")
    assert one.counts == [[2, 1]]
    assert one.to_json() == {"digest": one.digest, "origin": "the template", "counts": [[2, 1]]}
    assert PromptSet(one.prompts, [["x", "y"]], "elsewhere").digest == one.digest
    assert PromptSet([[["b", "a"], ["c"]]], one.plain, one.origin).digest != one.digest


@pytest.mark.parametrize("size", [1, 7, 32])
def test_prompts_are_spread_evenly_and_do_not_depend_on_the_shards(size):
    from counterpoise.synthesis.pool.address import Shard
    from counterpoise.synthesis.pool.shard_spec import ShardSpec

    fifty = [f"prompt {number}" for number in range(50)]
    recipe = ShardSpec("d", "n", LabelSpace(("star",)), "png", [[fifty]], [["star"]], "", size, 1)
    drawn = [prompt for number in range(224 // size) for prompt in recipe.prompts_of(Shard(0, 0, number))]
    assert drawn == [fifty[index % 50] for index in range(224)]
    for first in range(1, 225):
        counts = [drawn[:first].count(prompt) for prompt in fifty]
        assert max(counts) - min(counts) <= 1
