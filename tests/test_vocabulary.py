"""Token ids from tokenizer files: ordinary ids, their order, start and end tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gaprune.models.input_spec import TokenIds
from gaprune.models.sources.vocabulary import read_token_ids

BERT = ["[PAD]", "[unused0]", "[CLS]", "[SEP]", "!", "a", "the", "of", "##s", "zebra"]
PIECES = {piece: number for number, piece in enumerate(BERT)}
ADDED = [{"id": number, "content": BERT[number], "special": True} for number in (0, 2, 3)]
TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ],
    "special_tokens": {
        "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
        "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
    },
}
TOKENIZER = {
    "added_tokens": ADDED,
    "post_processor": TEMPLATE,
    "model": {"type": "WordPiece", "vocab": PIECES},
}


def words_in(folder: Path, vocabulary: int = 10) -> TokenIds | None:
    """Read the files of a folder."""

    def find(name: str) -> Path | None:
        return folder / name if (folder / name).exists() else None

    return read_token_ids(find, vocabulary)


def write(folder: Path, **changes: Any) -> Path:
    """Write a `tokenizer.json` and return the folder."""
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER | changes))
    return folder


def known(token_ids: TokenIds | None) -> tuple[tuple[int, ...], int | None, int | None]:
    """Return what was read, for comparison."""
    assert token_ids is not None
    return token_ids.by_frequency, token_ids.start, token_ids.end


def test_ordinary_tokens_in_the_order_of_their_ids(tmp_path: Path) -> None:
    """Special tokens, unused tokens and single characters are left out; word pieces stay."""
    assert known(words_in(write(tmp_path))) == ((6, 7, 8, 9), 2, 3)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["of", "##s", ".", "the"], {"of": 0, ".": 2, "the": 3}),
        (["ing", "Ġthe", ".", "Ġ.", "Ġof"], {"the": 1, "of": 4, ".": 2}),
        (["▁of", "s", ",", "▁the"], {"of": 0, "the": 3, ",": 2}),
    ],
    ids=["word pieces", "bytes", "sentence pieces"],
)
def test_words_and_punctuation(tmp_path: Path, pieces: list[str], expected: dict[str, int]) -> None:
    """Pieces that begin a word are known without their mark; what continues one is left out."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    write(tmp_path, model={"vocab": vocabulary}, added_tokens=[], post_processor=None)
    read = words_in(tmp_path)
    assert read is not None
    assert read.words == expected


@pytest.mark.parametrize(
    ("processor", "marks"),
    [
        (None, (None, None)),
        ({"type": "ByteLevel"}, (None, None)),
        ({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, (2, 3)),
        ({"type": "RobertaProcessing", "sep": ["</s>", 6], "cls": ["<s>", 2]}, (2, 6)),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, (2, 3)),
        (TEMPLATE | {"single": TEMPLATE["single"][:2]}, (2, None)),
    ],
    ids=["none", "bytes", "bert", "roberta", "sequence", "start only"],
)
def test_start_and_end_tokens(
    tmp_path: Path, processor: object, marks: tuple[int | None, int | None]
) -> None:
    """The post-processor defines them; neither is an ordinary token."""
    ranked, start, end = known(words_in(write(tmp_path, post_processor=processor)))
    assert (start, end) == marks
    assert not set(marks) & set(ranked)


def test_unigram_pieces_are_a_list(tmp_path: Path) -> None:
    """The index of a piece is its id; pieces are sorted by probability."""
    pieces = [["<unk>", 0.0], ["▁the", -2.5], ["▁of", -3.0], ["x", -4.0], ["ing", -4.5]]
    model = {"type": "Unigram", "vocab": pieces}
    write(tmp_path, model=model, added_tokens=[], post_processor=None)
    assert known(words_in(tmp_path)) == ((1, 2, 4), None, None)


def test_files_of_the_tokenizers_package_are_read(tmp_path: Path) -> None:
    """A trained byte-pair tokenizer frames a text with the start and end ids that were read."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=special)
    tokenizer.train_from_iterator(["the cat saw the other cat", "then they met"] * 4, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ranked, start, end = known(words_in(tmp_path, tokenizer.get_vocab_size()))
    ids = tokenizer.encode("the cat").ids
    assert (ids[0], ids[-1]) == (start, end) == (1, 2)
    assert set(ids[1:-1]) <= set(ranked)
    assert all(len(tokenizer.id_to_token(number)) > 1 for number in ranked)


def test_a_plain_list_of_pieces(tmp_path: Path) -> None:
    """`vocab.txt` replaces a missing or damaged `tokenizer.json`, with the tokens of BERT."""
    (tmp_path / "vocab.txt").write_text("\n".join(BERT) + "\n")
    assert known(words_in(tmp_path)) == ((6, 7, 8, 9), 2, 3)
    (tmp_path / "tokenizer.json").write_text("{")
    assert known(words_in(tmp_path)) == ((6, 7, 8, 9), 2, 3)


def test_settings_name_start_and_end_tokens(tmp_path: Path) -> None:
    """As text or as a table; these tokens are not ordinary."""
    (tmp_path / "vocab.txt").write_text("\n".join(BERT))
    stated = {"cls_token": {"content": "the"}, "sep_token": "zebra", "model_max_length": 9}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    assert known(words_in(tmp_path)) == ((7, 8), 6, 9)


def test_a_folder_without_tokenizer_gives_none(tmp_path: Path) -> None:
    """A missing tokenizer is no error."""
    assert words_in(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {}},
        {"model": None},
        {"model": {"vocab": 3}},
        {"model": {"vocab": {"the": "one", "of": 2}}},
        {"model": {"vocab": {"the": 6, "of": -7}}},
        {"model": {"vocab": {"the": 6, "of": 10}}},  # outside the vocabulary
        {"model": {"vocab": {"a": 0, "the": 1}}},  # a single ordinary token
        {"model": {"vocab": [["the"], ["of"]]}},
        {"added_tokens": [{"content": "[PAD]"}]},
        {"post_processor": {"single": []}},
        {"post_processor": TEMPLATE | {"special_tokens": {}}},
        {"post_processor": {"cls": ["[CLS]", 99], "sep": ["[SEP]", 3]}},
        {"post_processor": {"cls": "[CLS]", "sep": None}},
    ],
)
def test_unexpected_content_gives_none(tmp_path: Path, changes: dict[str, object]) -> None:
    """So does the tokenizer of a network with another vocabulary."""
    assert words_in(write(tmp_path, **changes)) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_damaged_files_give_none(tmp_path: Path, content: bytes) -> None:
    """Empty, other JSON, no text, deeply nested, a folder."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert words_in(tmp_path) is None
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    assert words_in(tmp_path) is None


def test_damaged_settings_give_none(tmp_path: Path) -> None:
    """`vocab.txt` alone would leave start and end tokens to a guess."""
    (tmp_path / "vocab.txt").write_text("\n".join(BERT))
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    assert words_in(tmp_path) is None
