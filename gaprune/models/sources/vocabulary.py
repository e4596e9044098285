"""Which ids of a network are ordinary tokens, and what frames a text: from its tokenizer's files.

WordPiece and BPE give ids in the order in which pieces joined the vocabulary, and Unigram in the
order of their probability: near enough to the order of frequency. calibration inputs can do without all this,
so a file that is missing or not understood says nothing, and is no error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gaprune.models.input_spec import TokenIds

TOKENIZER, PLAIN, SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
LEAST = 2  # ordinary ids, for less there is nothing to draw from
_BRACKETED = re.compile(r"\[.+\]|<.+>")  # [CLS], [unused7], <pad>, <0x0A>
_NOT_UNDERSTOOD = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
Find = Callable[[str], Path | None]
"""Name of a file beside the network → where it is, or None."""


def read_token_ids(find: Find, vocabulary: int) -> TokenIds | None:
    """Return what a tokenizer's files say about the ids of a network, or None: nothing.

    Special tokens, names in brackets such as `[unused7]` and single characters are not ordinary.

    Args:
        find: gives the files; `tokenizer.json` is preferred to `vocab.txt`.
        vocabulary: ids of the network; a tokenizer with ordinary ids beyond it is of another one.
    """
    for name, read in _FILES.items():
        if (path := find(name)) is None:
            continue
        with suppress(OSError, *_NOT_UNDERSTOOD):
            token_ids = read(path, find)
            marks = [mark for mark in (token_ids.start, token_ids.end) if mark is not None]
            ids = (*token_ids.by_frequency, *marks)
            if len(token_ids.by_frequency) >= LEAST and min(ids) >= 0 and max(ids) < vocabulary:
                return token_ids
    return None


def _of_tokenizer(path: Path, _find: Find) -> TokenIds:
    """Read a file of the package tokenizers."""
    stated = json.loads(path.read_text(encoding="utf-8"))
    pieces = stated["model"]["vocab"]
    if isinstance(pieces, Sequence):  # Unigram: pairs of a piece and its log-probability
        pieces = {piece: number for number, (piece, _) in enumerate(pieces)}
    added = {_id(one["id"]) for one in stated.get("added_tokens") or ()}
    start, end = _frame(stated.get("post_processor"))
    return TokenIds(_ranked(pieces, added | {start, end}), start, end)


def _frame(processor: Mapping[str, Any] | None) -> tuple[int | None, int | None]:
    """Return what a single text begins and ends with."""
    for step in _steps(processor):
        if "cls" in step and "sep" in step:  # BertProcessing, RobertaProcessing
            return _id(step["cls"][1]), _id(step["sep"][1])
        if "single" in step:  # TemplateProcessing
            first, last = step["single"][0], step["single"][-1]
            special = step["special_tokens"]
            return _marked(first, special, 0), _marked(last, special, -1)
    return None, None


def _steps(processor: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if processor is None:
        return
    yield processor
    for step in processor.get("processors") or ():
        yield from _steps(step)


def _marked(part: Mapping[str, Any], special: Mapping[str, Any], place: int) -> int | None:
    """Return the id of a part of a template; the text itself has none."""
    if "SpecialToken" not in part:
        return None
    return _id(special[part["SpecialToken"]["id"]]["ids"][place])


def _of_lines(path: Path, find: Find) -> TokenIds:
    """Read a file with a piece on every line, as WordPiece had before there was a `tokenizer.json`.

    Its marks are those of `tokenizer_config.json`, else BERT's.
    """
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    pieces = {piece.rstrip("\r"): number for number, piece in enumerate(lines)}
    settings, place = {}, find(SETTINGS)
    if place is not None:
        settings = json.loads(place.read_text(encoding="utf-8"))
    named = {key: _name(value) for key, value in settings.items() if key.endswith("_token")}
    start = pieces.get(named.get("cls_token", "[CLS]"))
    end = pieces.get(named.get("sep_token", "[SEP]"))
    special = {pieces[name] for name in named.values() if name in pieces}
    return TokenIds(_ranked(pieces, special), start, end)


def _name(value: object) -> str:
    """Return a token that is written as its text, or as a table with it."""
    return str(value["content"] if isinstance(value, Mapping) else value)


def _ranked(pieces: Mapping[str, int], special: set[int | None] | set[int]) -> tuple[int, ...]:
    ordinary = {
        _id(number)
        for piece, number in pieces.items()
        if len(piece) > 1 and number not in special and not _BRACKETED.fullmatch(piece)
    }
    return tuple(sorted(ordinary))


def _id(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"no id: {value!r}")
    return value


_FILES: dict[str, Callable[[Path, Find], TokenIds]] = {TOKENIZER: _of_tokenizer, PLAIN: _of_lines}
