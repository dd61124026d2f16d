"""Docstrings begin with a noun phrase or an imperative, never with a question word; ruff's rules D cannot see this."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "platform" / "counterpoise"
FILES = sorted(PACKAGE.rglob("*.py"))
WORDS = "What|How|Who|Whose|Which|Whether|Where|Of|If|That"
OPENING = re.compile(rf"(?:{WORDS})\b")
ENTRY = re.compile(rf" +[\w*, ]+: (?:{WORDS})\b.*")  # of a section Args or Attributes
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def offences(source: str) -> list[str]:
    """Return the lines of docstrings that begin with one of the words: first lines, and entries of sections."""
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
    first = [text.splitlines()[0] for text in docstrings if OPENING.match(text)]
    return first + [line.strip() for text in docstrings for line in text.splitlines() if ENTRY.fullmatch(line)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_docstring_begins_with_a_question_word(file):
    assert offences(file.read_text(encoding="utf-8")) == []


def test_the_rule_sees_modules_classes_functions_and_entries():
    source = '''"""What a module holds."""
class A:
    """Whether it is.

    Attributes:
        size: How large it is.
        name: The name.
    """
    def f(self):
        """Of all."""
    def g(self):
        """Offer a value; return what it was."""
'''
    assert offences(source) == ["What a module holds.", "Whether it is.", "Of all.", "size: How large it is."]
