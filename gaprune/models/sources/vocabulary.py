"""Read which ids of a network are ordinary tokens, and which frame a text, from tokenizer files.

Pieces are numbered nearly in the order of frequency. Calibration inputs can do without, so a file
that is missing or not understood is no error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gaprune.io.bounded_reading import MAX_JSON, read_bytes, read_json
from gaprune.models.input_spec import TokenIds

TOKENIZER, PLAIN, SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
WORD_STARTS, CONTINUES = ("Ġ", "▁"), "##"  # of byte-level BPE and SentencePiece; of WordPiece
FEWEST_IDS = 2  # with fewer ordinary ids there is nothing to draw from
_BRACKETED = re.compile(r"\[.+\]|<.+>")  # [CLS], [unused7], <pad>, <0x0A>
_NOT_UNDERSTOOD = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
Find = Callable[[str], Path | None]
"""Name of a file beside the network → its path, or None."""


def read_token_ids(find: Find, vocabulary: int) -> TokenIds | None:
    """Return what tokenizer files say about the ids of a network, or None.

    Special tokens, names in brackets such as `[unused7]` and single characters are not ordinary.

    A tokenizer with ids beyond the network's `vocabulary` does not belong to it.
    """
    for name, read in _READERS.items():
        if (path := find(name)) is None:
            continue
        # a file that is not understood is skipped: the next one may be
        with suppress(OSError, *_NOT_UNDERSTOOD):
            token_ids = read(path, find)
            marks = [mark for mark in (token_ids.start, token_ids.end) if mark is not None]
            ids = (*token_ids.by_frequency, *marks)
            enough = len(token_ids.by_frequency) >= FEWEST_IDS
            if enough and min(ids) >= 0 and max(ids) < vocabulary:
                return token_ids
    return None


def _read_tokenizer(path: Path, _find: Find) -> TokenIds:
    """Read `tokenizer.json` of the package tokenizers."""
    content = read_json(path)
    pieces = content["model"]["vocab"]
    if isinstance(pieces, Sequence):  # Unigram: pairs of a piece and its log-probability
        pieces = {piece: number for number, (piece, _) in enumerate(pieces)}
    added = {_id(token["id"]) for token in content.get("added_tokens") or ()}
    start, end = _start_and_end(content.get("post_processor"))
    return TokenIds(_ordinary_ids(pieces, added | {start, end}), start, end, words=_words(pieces))


def _start_and_end(processor: Mapping[str, Any] | None) -> tuple[int | None, int | None]:
    """Return the ids that begin and end a single text."""
    for step in _steps(processor):
        if "cls" in step and "sep" in step:  # BertProcessing, RobertaProcessing
            return _id(step["cls"][1]), _id(step["sep"][1])
        if "single" in step:  # TemplateProcessing
            return _template_mark(step, 0), _template_mark(step, -1)
    return None, None


def _template_mark(step: Mapping[str, Any], index: int) -> int | None:
    part = step["single"][index]
    if "SpecialToken" not in part:  # it is the text itself
        return None
    return _id(step["special_tokens"][part["SpecialToken"]["id"]]["ids"][index])


def _steps(processor: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if processor is None:
        return
    yield processor
    for step in processor.get("processors") or ():
        yield from _steps(step)


def _read_lines(path: Path, find: Find) -> TokenIds:
    """Read `vocab.txt`, one piece per line, as WordPiece used before `tokenizer.json`.

    Special tokens are those of `tokenizer_config.json`, else BERT's.
    """
    lines = read_bytes(path, MAX_JSON).decode("utf-8").removesuffix("\n").split("\n")
    pieces = {piece.rstrip("\r"): number for number, piece in enumerate(lines)}
    settings_path = find(SETTINGS)
    settings = {} if settings_path is None else read_json(settings_path)
    special = {
        # a token is written as its text, or as a table that holds it
        key: str(value["content"] if isinstance(value, Mapping) else value)
        for key, value in settings.items()
        if key.endswith("_token")
    }
    start = pieces.get(special.get("cls_token", "[CLS]"))
    end = pieces.get(special.get("sep_token", "[SEP]"))
    special_ids = {pieces[name] for name in special.values() if name in pieces}
    return TokenIds(_ordinary_ids(pieces, special_ids), start, end, words=_words(pieces))


def _ordinary_ids(pieces: Mapping[str, int], special: Collection[int | None]) -> tuple[int, ...]:
    ids = {
        _id(number)
        for piece, number in pieces.items()
        if len(piece) > 1 and number not in special and not _BRACKETED.fullmatch(piece)
    }
    return tuple(sorted(ids))


def _words(pieces: Mapping[str, int]) -> dict[str, int]:
    """Return text → id of the pieces that begin a word, and of punctuation, in the order of ids."""
    ordered = sorted(pieces.items(), key=lambda item: item[1])
    begun = {piece[1:]: _id(number) for piece, number in ordered if piece[:1] in WORD_STARTS}
    if begun:  # what is not marked continues a word, or is punctuation
        marks = {p: number for p, number in ordered if len(p) == 1 and not p.isalnum()}
        return begun | marks
    return {piece: number for piece, number in ordered if not piece.startswith(CONTINUES)}


def _id(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"no id: {value!r}")
    return value


_READERS: dict[str, Callable[[Path, Find], TokenIds]] = {
    TOKENIZER: _read_tokenizer,
    PLAIN: _read_lines,
}
