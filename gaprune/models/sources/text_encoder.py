"""Texts → token ids, by the tokenizer that comes with a network of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gaprune.errors import InputError, first_line
from gaprune.models.sources.optional_packages import import_extra


@dataclass(frozen=True)
class TextEncoder:
    """The tokenizer of a network, loaded when a text is read.

    Attributes:
        location: folder of the network, or its name in the cache of the hub.
        gguf: name of a GGUF file in the folder that holds the tokenizer, or empty.
        packs: whether texts are joined and cut into inputs of equal length, as a causal language
            model reads them; else every line is an input, cut or padded.
        start: the id that a text of a causal language model begins with, if it has one.
        local: whether nothing may be downloaded.
    """

    location: str
    gguf: str = ""
    packs: bool = False
    start: int | None = None
    local: bool = True

    @cached_property
    def _tokenizer(self) -> Any:
        transformers = import_extra("transformers", "hf", "texts")
        named = {"gguf_file": self.gguf} if self.gguf else {}
        try:
            return transformers.AutoTokenizer.from_pretrained(
                self.location, local_files_only=self.local, trust_remote_code=False, **named
            )
        except Exception as error:  # any type, depending on the kind of tokenizer
            raise InputError(
                f"calibration inputs: the tokenizer of {self.location} cannot be loaded "
                f"({first_line(error)}); give token ids in a .npy file"
            ) from error

    def rows(self, texts: Sequence[str], length: int) -> Tensor:
        """Return int64 ids `[N, length]` of texts; of a causal language model only full rows."""
        if self.packs:
            joined = self._tokenizer("\n".join(texts), add_special_tokens=False, verbose=False)
            ids = torch.tensor(joined["input_ids"], dtype=torch.int64)
            return ids[: len(ids) // length * length].view(-1, length)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        padded = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length
        )
        return torch.tensor(padded["input_ids"], dtype=torch.int64).view(-1, length)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the tokenizer, which loads again where it is needed."""
        return {name: value for name, value in vars(self).items() if name != "_tokenizer"}
