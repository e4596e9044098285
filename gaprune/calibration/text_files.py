"""Token ids of text files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from gaprune.errors import InputError
from gaprune.io.bounded_reading import read_bytes
from gaprune.models.input_spec import InputSpec

SUFFIX = ".txt"
MOST_BYTES = 64 << 20  # of a text file: far more than any calibration uses


def read_texts(path: Path, spec: InputSpec) -> Tensor:
    """Return int64 ids `[N, *spec.shape]` of a text file in UTF-8; see `TextEncoder.rows`.

    Raises:
        InputError: a network without a tokenizer, bytes that are no UTF-8, or too little text.
    """
    if spec.text is None:
        raise InputError(
            f"calibration inputs: {path} is a text, and only networks of transformers (hf:FOLDER) "
            "bring the tokenizer to read it; give token ids in a .npy file"
        )
    try:
        lines = read_bytes(path, MOST_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"calibration inputs: {path} is no text in UTF-8 ({error})") from error
    ids: Tensor = spec.text.rows([line for line in lines if line.strip()], spec.shape[0])
    if not len(ids):
        raise InputError(
            f"calibration inputs: {path} has fewer than {spec.shape[0]} tokens, the length of one "
            "input; give a longer text, or fewer tokens per input (--input-shape=64)"
        )
    return ids
