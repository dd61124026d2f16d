"""What a language model is asked, and what of its answers can be used."""

import pytest

from counterpoise.config import Prompts
from counterpoise.errors import SynthesisError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.contextual import Request, collect, defect, instruction, parse, requests

NAMES = LabelSpace(("not_smiling", "smiling"), ("female", "male"))
PROMPTS = Prompts(
    descriptions={"smiling": "with a happy face", "not_smiling": ""},
    contextual={
        "number": 3,
        "task": "photos of faces",
        "details": ["Mention the hair."],
        "format": "Portrait face photo of a",
        "llm": {"model": "m", "endpoint": "http://host/v1"},
    },
)


def request_for(**changes) -> Request:
    given = {
        "cell": "smiling × male", "number": 3, "task": "photos", "target": "smiling", "protected": "male", "about": "",
        "details": (), "format": "Portrait of a", "others": ("not smiling", "female"),
    }  # fmt: skip
    return Request(**{**given, **changes})


def test_an_instruction_has_all_its_parts():
    """AIM-Fair, section 3.1: task, number, target, protected, other details, format."""
    smiling_male = requests(PROMPTS, NAMES)[3]
    text = instruction(smiling_male, 7, ["Portrait face photo of a smiling male"])
    for part in (
        "photos of faces",
        "7 different",
        '"smiling" and "male"',
        "with a happy face",
        "Mention the hair.",
        '"Portrait face photo of a"',
        "- Portrait face photo of a smiling male",
    ):
        assert part in text
    assert "Do not repeat" not in instruction(smiling_male, 7)


def test_a_request_for_every_cell():
    asked = requests(PROMPTS, NAMES)
    assert [(one.cell, one.target, one.protected) for one in asked] == [
        ("not_smiling × female", "not smiling", "female"),
        ("not_smiling × male", "not smiling", "male"),
        ("smiling × female", "smiling", "female"),
        ("smiling × male", "smiling", "male"),
    ]
    assert asked[0].others == ("smiling", "male")
    (alone,) = requests(Prompts(contextual=PROMPTS.contextual), LabelSpace(("star",)))
    assert (alone.protected, alone.others) == ("", ())
    assert '"star", in' in instruction(alone, 1)


# -- answers -----------------------------------------------------------------------------------------------------------

WANTED = ["A photo of a red star", "A photo of a blue star, at night"]


@pytest.mark.parametrize(
    "answer",
    [
        "1. A photo of a red star\n2. A photo of a blue star, at night",
        "Sure! Here are 2 prompts:\n\n1) A photo of a red star\n\n 2) **A photo of a blue star, at night**\n\nEnjoy!",
        '- "A photo of a red star"\n* “A photo of a blue star, at night”\n',
        "A photo of a red star\nA photo of a  blue star, at night\n",
        "# Prompts\nHere they are:\nA photo of a red star\nA photo of a blue star, at night",
        '["A photo of a red star", "A photo of a blue star, at night"]',
        'Here:\n```json\n{"prompts": ["A photo of a red star", "A photo of a blue star, at night"]}\n```\n[end',
        '```json\n["A photo of a red star", "A photo of a blue star, at night"]\n```',
        '[{"id": 1, "prompt": "A photo of a red star"}, {"prompt": "A photo of a blue star, at night"}]',
    ],
)
def test_answers_are_lists_in_many_forms(answer):
    assert parse(answer) == WANTED


@pytest.mark.parametrize("answer", ["", "\n\n", "Here are the prompts:", "```\n```"])
def test_answers_that_are_none(answer):
    assert parse(answer) == []


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("Portrait of a smiling male, head turned", None),
        ("portrait of A male who smiles", None),  # inflected, in another order
        ("Portrait of an old male, smiling", None),
        ("A smiling male", "does not begin"),
        ("Portrait of a laughing male", "'smiling'"),
        ("Portrait of a smiling person", "'male'"),
        ("Portrait of a smiling female", "'male'"),  # "male" is in "female", but is another word
        ("Portrait of a male and a female, both smiling", "says 'female'"),
        ("Portrait of a male, not smiling", "says 'not smiling'"),
    ],
)
def test_prompts_carry_the_words_of_their_cell_and_of_no_other(prompt, reason):
    found = defect(prompt, request_for())
    assert (found is None) if reason is None else reason in found


def test_words_within_words():
    not_smiling = request_for(target="not smiling", others=("smiling", "female"))
    assert defect("Portrait of a male, not smiling", not_smiling) is None
    assert defect("Portrait of a smiling male", not_smiling) is not None
    portrait = request_for(target="star", protected="", format="A portrait of a star", others=("portrait",))
    assert defect("A portrait of a star", portrait) is None  # the format's own words are in every prompt
    dress = request_for(target="dress", protected="an adult's", format="", others=("t-shirt",))
    assert defect("two dresses of an adult", dress) is None
    assert defect("an adult's dress over a T-shirt", dress) == "it says 't-shirt'"


def numbered(*texts):
    return "\n".join(f"{number}. Portrait of a {text}" for number, text in enumerate(texts, 1))


def test_what_is_missing_is_asked_for_again():
    answers = [
        numbered("smiling male", "smiling male.", "smiling female"),
        numbered("male, smiling", "smiling male at night", "smiling male, too many"),
    ]
    heard = []

    def ask(text, asked):
        heard.append((text, asked))
        return answers[asked]

    found = collect(request_for(), ask)
    assert found.prompts == ["Portrait of a smiling male", "Portrait of a male, smiling",
                             "Portrait of a smiling male at night"]  # fmt: skip
    assert found.refused == [
        ("Portrait of a smiling male.", "it was said before"),
        ("Portrait of a smiling female", "it does not say 'male'"),
    ]
    assert [asked for _, asked in heard] == [0, 1]
    assert "Write 3 " in heard[0][0]
    assert "Write 2 " in heard[1][0]
    assert "- Portrait of a smiling male" in heard[1][0]


def test_many_are_asked_for_in_parts():
    heard = []

    def ask(text, asked):
        heard.append(text)
        return numbered(*(f"smiling male number {asked} {number}" for number in range(50)))

    assert len(collect(request_for(number=120), ask).prompts) == 120
    assert [text.split()[1] for text in heard] == ["50", "50", "20"]
    assert heard[2].count("\n- ") == 50  # what came last, not all there is


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (numbered("smiling male"), "1 of 3 in 5 answers; refused: 4 because it was said before"),
        (numbered("cat", "dog"), "0 of 3 in 5 answers; refused: 10 because it does not say 'smiling'"),
        ("", "the last answer has no list of prompts: ''"),
        ("I cannot help with that.", "for example: 'I cannot help with that.'"),
    ],
)
def test_too_few_are_an_error_that_says_why(answer, message):
    asked = []
    with pytest.raises(SynthesisError, match="smiling × male") as caught:
        collect(request_for(), lambda text, number: asked.append(number) or answer)
    assert message in str(caught.value)
    assert asked == [0, 1, 2, 3, 4]
    assert "do:" in str(caught.value)
