"""Prompts without a language model: every combination once, every value as often as any other."""

import math
from collections import Counter
from itertools import product

import pytest

from counterpoise.config import Prompts
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.grammar import combinations, grammar_prompts

NAMES = LabelSpace(("star", "disc"), ("red", "blue"))
LENGTHS = [(1,), (7,), (2, 3), (4, 6), (4, 4), (3, 3, 3), (2, 4, 8), (6, 10, 15), (5, 1, 5, 2)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_combination_comes_once(lengths):
    assert sorted(combinations(lengths, math.prod(lengths))) == sorted(product(*map(range, lengths)))
    assert combinations(lengths, 10**9) == combinations(lengths, math.prod(lengths))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_first_of_them_are_even_however_many_they_are(lengths):
    found = combinations(lengths, 200)
    for first in range(1, len(found) + 1):
        for position, length in enumerate(lengths):
            counts = Counter(digits[position] for digits in found[:first])
            assert max(counts.values()) - min(counts[digit] for digit in range(length)) <= 1


def test_equally_long_lists_do_not_march_in_step():
    """Of ten poses and ten lights, fifty prompts must not show each pose in half the blocks with the same light."""
    pairs = Counter((pose, light) for pose, light, _ in combinations((10, 10, 10), 100))
    assert len(pairs) == 100


def test_more_combinations_than_anybody_can_count_take_no_time():
    assert len(set(combinations([60] * 12, 500))) == 500


def prompts(template="a photo of a {group} {label} {place}", number=4, **attributes):
    attributes = attributes or {"place": ["on sand", "on grass"], "light": ["at noon", "at night", ""]}
    return Prompts(template=template, contextual={"number": number, "attributes": attributes})


def test_values_stand_where_the_template_says_or_at_the_end():
    found = grammar_prompts(prompts(number=6), NAMES)
    assert found[0][1] == [
        "a photo of a blue star on sand, at noon",
        "a photo of a blue star on grass, at night",
        "a photo of a blue star on sand",
        "a photo of a blue star on grass, at noon",
        "a photo of a blue star on sand, at night",
        "a photo of a blue star on grass",
    ]


def test_all_cells_see_the_same_contexts():
    found = grammar_prompts(prompts(), NAMES)
    contexts = {
        tuple(prompt.replace(f"{group} {label}", "…") for prompt in found[i][j])
        for i, label in enumerate(NAMES.classes)
        for j, group in enumerate(NAMES.groups)
    }
    assert len(contexts) == 1


def test_no_prompt_comes_twice():
    few = prompts(number=50, place=["here", "there"])
    assert len(grammar_prompts(few, NAMES)[0][0]) == 2
    same = prompts(number=50, place=["", "far"], light=["", "far"])  # "… far" and "…, far" differ, "" twice does not
    assert len(set(grammar_prompts(same, NAMES)[0][0])) == 4
