"""Grammar prompts: many prompts for a cell without a language model, from evenly combined attribute values."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from counterpoise.config import Prompts
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.prompt_set import cell_words, fill


def grammar_prompts(prompts: Prompts, names: LabelSpace) -> list[list[list[str]]]:
    """Return ``prompts.contextual.number`` prompts for each cell, or one for each combination of values.

    The smaller of the two numbers counts. An attribute's value replaces its name in braces in the template; attributes
    that the template does not name are appended after a comma. The k-th prompts of all cells combine the same values,
    because a pose or a light that accompanied one class more often than another would be a new bias.
    """
    contextual = prompts.contextual
    assert contextual is not None
    attributes = contextual.attributes
    named = {field for _, field, _, _ in string.Formatter().parse(prompts.template)}
    template = prompts.template + "".join(f", {{{name}}}" for name in attributes if name not in named)
    combined = [
        {name: values[digit] for (name, values), digit in zip(attributes.items(), digits, strict=True)}
        for digits in combinations([len(values) for values in attributes.values()], contextual.number)
    ]
    return [
        [list(dict.fromkeys(fill(template, **words, **values) for values in combined)) for words in row]
        for row in cell_words(prompts, names)
    ]


def combinations(lengths: Sequence[int], number: int) -> list[tuple[int, ...]]:
    """Return the first ``number`` combinations of one digit in ``range(n)`` for each n of ``lengths``.

    At most all combinations are returned, none twice. Among the first k, for every k, the frequencies of a position's
    digits differ by at most one. To that end they come in blocks of lcm(lengths): within a block every digit counts up
    by one, cyclically; each block begins at another coset of (1, 1, …, 1), and the order of cosets changes all digits
    from block to block.
    """
    block = math.lcm(*lengths)
    radices, before = [], 1
    for length in lengths:  # the cosets' representatives have digits below gcd(n, lcm of the lengths before it)
        radices.append(math.gcd(length, before))
        before = math.lcm(before, length)
    cosets = math.prod(radices)
    stride = next(s for s in range(round(cosets * 0.618) or 1, 2 * cosets + 1) if math.gcd(s, cosets) == 1)
    result = []
    for index in range(min(number, block * cosets)):
        rest, digits = index // block * stride % cosets, []
        for length, radix in zip(lengths, radices, strict=True):
            rest, start = divmod(rest, radix)
            digits.append((start + index) % length)
        result.append(tuple(digits))
    return result
