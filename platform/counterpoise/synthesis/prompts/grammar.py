"""Many prompts for a cell without a language model: a value of each attribute, combined evenly."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from counterpoise.config import Prompts
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.prompt_set import cell_words, fill


def grammar_prompts(prompts: Prompts, names: LabelSpace) -> list[list[list[str]]]:
    """``prompts.contextual.number`` prompts for each cell, or as many as there are combinations of attribute values.

    An attribute stands where the template names it in braces; what it does not name is appended after a comma. The
    k-th prompts of all cells combine the same values: a pose or a light that came with one class more often than with
    another would be a bias of its own.
    """
    contextual = prompts.contextual
    assert contextual is not None
    attributes = contextual.attributes
    named = {field for _, field, _, _ in string.Formatter().parse(prompts.template)}
    template = prompts.template + "".join(f", {{{name}}}" for name in attributes if name not in named)
    chosen = [
        {name: values[digit] for (name, values), digit in zip(attributes.items(), digits, strict=True)}
        for digits in combinations([len(values) for values in attributes.values()], contextual.number)
    ]
    return [
        [list(dict.fromkeys(fill(template, **words, **values) for values in chosen)) for words in row]
        for row in cell_words(prompts, names)
    ]


def combinations(lengths: Sequence[int], number: int) -> list[tuple[int, ...]]:
    """The first ``number`` combinations of one digit in ``range(n)`` for each n of ``lengths``, or all there are.

    None comes twice, and among the first k, for every k, the digits of a position differ in frequency by at most one.
    So they come in blocks of lcm(lengths): within a block every digit counts up by one, round and round; each block
    begins at another coset of (1, 1, …, 1), the cosets in an order that changes all digits from block to block.
    """
    block = math.lcm(*lengths)
    radices, before = [], 1
    for length in lengths:  # of the cosets' representatives: digits below gcd(n, lcm of the lengths before it)
        radices.append(math.gcd(length, before))
        before = math.lcm(before, length)
    cosets = math.prod(radices)
    stride = next(s for s in range(round(cosets * 0.618) or 1, 2 * cosets + 1) if math.gcd(s, cosets) == 1)
    found = []
    for index in range(min(number, block * cosets)):
        left, digits = index // block * stride % cosets, []
        for length, radix in zip(lengths, radices, strict=True):
            left, start = divmod(left, radix)
            digits.append((start + index) % length)
        found.append(tuple(digits))
    return found
