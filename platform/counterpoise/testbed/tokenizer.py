"""CLIP byte-pair tokenizer of some 600 tokens, so that the embedding table does not dominate the model's size.

Words of one pair of models are single tokens; other words are spelled in bytes. The same files load as
transformers' CLIPTokenizer (for the StableDiffusionPipeline) and through open_clip's `local-dir:`.
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

CONTEXT = 24
PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"


def byte_characters() -> list[str]:
    """Return the printable character for each of the 256 bytes in CLIP's vocabularies (GPT-2's table)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in keep else chr(256 + sum(k not in keep for k in range(b))) for b in range(256)]


def learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """Learn merges of the most frequent neighbours (ties: alphabetical) until every word of the texts is one token."""
    counts = Counter(part for text in texts for word in text.split() for part in word.replace("-", " - ").split())
    words = {word: (*word[:-1], word[-1] + "</w>") for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter[tuple[str, str]]()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _merge(parts, best) for word, parts in words.items()}


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(parts):
        hit = parts[i : i + 2] == pair
        out.append(parts[i] + parts[i + 1] if hit else parts[i])
        i += 2 if hit else 1
    return tuple(out)


def make_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """Build a tokenizer in which each word of the texts is one token; sequences hold up to CONTEXT tokens.

    Padding has its own id, and the end token the highest: open_clip pools at the argmax of the ids and transformers at
    the end token, and so both pool at the same position.
    """
    merges = learn_merges(texts)
    symbols = byte_characters()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), PAD, START, END]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer's files."""
    tokenizer.save_pretrained(folder)
