"""`hf:NAME`: ids go in, one tensor comes out, and nothing is random, run or downloaded."""

from __future__ import annotations

import copy
import json
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.models.input_spec import InputOptions, InputSpec
from gaprune.models.sources import load_source
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.tokenizer import mask_of, pool_tokens
from gaprune.models.target import target_from_module

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
TEXTS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 0, 0, 0]])  # the second one is padded


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where anything tries to connect."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"connects to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return iter([None])


def transformers() -> Any:  # noqa: ANN401 - a module
    """Import transformers as the source does."""
    return import_extra("transformers", "hf", "test")


def saved(folder: Path, network: str, **settings: Any) -> Any:  # noqa: ANN401 - sizes, a network
    """Write a small network of a class of transformers, drawn by a seed, and return it."""
    made = getattr(transformers(), network)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = made(made.config_class(**{**SIZES, **settings})).eval()
    model.save_pretrained(folder)
    return model


def reference(model: Any) -> Any:  # noqa: ANN401 - a network and its outputs
    """Return what a network of transformers answers when called as its manual says."""
    with torch.no_grad():
        return model(input_ids=TEXTS, attention_mask=(TEXTS != 0).long())


@torch.no_grad()
def answer(place: Path, output: str | int | None = None, ids: Tensor = TEXTS) -> Tensor:
    """Return what the loaded network answers to ids alone."""
    outputs: Tensor = load_source(f"hf:{place}", output=output).model(ids)
    return outputs


def test_a_classifier_gives_its_logits(tmp_path: Path) -> None:
    """By default a network with a head returns the logits, under the mask of the padding."""
    model = saved(tmp_path, "BertForSequenceClassification", num_labels=3)
    assert torch.allclose(answer(tmp_path), reference(model).logits, atol=1e-6)


def test_an_encoder_gives_the_mean_of_its_tokens(tmp_path: Path) -> None:
    """By default an encoder averages the states of the tokens that are there."""
    model = saved(tmp_path, "BertModel")
    hidden = reference(model).last_hidden_state
    expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    assert torch.allclose(answer(tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize("output", ["mean", "cls"])
def test_padding_changes_nothing(tmp_path: Path, output: str) -> None:
    """A padded text has the vector that it has alone."""
    saved(tmp_path, "BertModel")
    alone = answer(tmp_path, output, TEXTS[1:, :2])
    assert torch.allclose(answer(tmp_path, output)[1:], alone, atol=1e-5)


@pytest.mark.parametrize("output", ["last_hidden_state", "pooler_output", 0, 1])
def test_any_output_can_be_chosen(tmp_path: Path, output: str | int) -> None:
    """By its name, or by its place in the tuple that transformers documents."""
    model = saved(tmp_path, "BertModel")
    assert torch.allclose(answer(tmp_path, output), reference(model)[output], atol=1e-6)


def test_an_output_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The message lists the outputs of this network."""
    saved(tmp_path, "BertModel")
    with pytest.raises(InputError, match=r"no 'logits'.*'last_hidden_state': tensor \[2, 5, 16\]"):
        answer(tmp_path, "logits")


@pytest.mark.parametrize(
    ("pooling", "same_as"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
    ids=["cls", "mean", "newer"],
)
def test_a_sentence_encoder_pools_as_its_folder_says(
    tmp_path: Path, pooling: dict[str, object], same_as: str
) -> None:
    """The pooling file of sentence-transformers is followed."""
    saved(tmp_path, "BertModel")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert torch.equal(answer(tmp_path), answer(tmp_path, same_as))


def test_a_pooling_of_another_kind_is_not_guessed(tmp_path: Path) -> None:
    """A pooling that is not built in has to be chosen by hand."""
    saved(tmp_path, "BertModel")
    (tmp_path / "1_Pooling").mkdir()
    stated = {"pooling_mode_max_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    with pytest.raises(InputError, match=r"pooling_mode_max_tokens.*mean, cls.*--output"):
        load_source(f"hf:{tmp_path}")
    with pytest.raises(InputError, match=r"unknown name 'max'.*cls, mean"):
        pool_tokens(torch.nn.Identity(), "max")


def test_nothing_but_padding_is_a_text_too() -> None:
    """A row of padding attends to itself, so that nothing becomes NaN."""
    ids = torch.tensor([[4, 0, 0], [0, 0, 0]])
    assert mask_of(ids, 0).tolist() == [[1, 0, 0], [1, 1, 1]]
    assert mask_of(ids, None).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_names_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    """Parameters have the names and bits of the file; a pooling layer without use is left out."""
    saved(tmp_path, "BertModel")
    file = load_file(tmp_path / "model.safetensors")
    loaded = load_source(f"hf:{tmp_path}")
    state = loaded.model.state_dict()
    assert all(torch.equal(value, file[name]) for name, value in state.items())
    assert {name for name in file if name not in state} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    assert "pooler.dense.weight" in load_source(f"hf:{tmp_path}", output=1).model.state_dict()


def test_inputs_are_tokens_of_its_vocabulary(tmp_path: Path) -> None:
    """Ids below the vocabulary, no longer than the network can take."""
    saved(tmp_path, "BertModel")
    loaded = load_source(f"hf:{tmp_path}")
    assert loaded.inputs == InputSpec(shape=(40,), kind="tokens", vocabulary=50)
    assert "BertModel" in loaded.origin
    assert "output mean" in loaded.origin


def test_it_can_be_a_target(tmp_path: Path) -> None:
    """The loaded network is copied, frozen, tried and masked like any other."""
    saved(tmp_path, "BertForSequenceClassification", num_labels=3)
    model = load_source(f"hf:{tmp_path}").model
    target = target_from_module(model, inputs=InputOptions(shape=(9,), vocabulary=50))
    assert target.layout.names[-1] == "classifier.weight"
    masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in target.weights.items()}
    with torch.no_grad():
        logits = target.masked_copy(masks)(TEXTS)
    assert torch.equal(logits, target.model.get_parameter("classifier.bias").expand(2, 3))


def test_it_can_be_copied_and_sent(tmp_path: Path) -> None:
    """A copy and a pickle still take ids alone and return one tensor."""
    saved(tmp_path, "BertModel")
    model = load_source(f"hf:{tmp_path}").model
    with torch.no_grad():
        expected = model(TEXTS)
        assert torch.equal(copy.deepcopy(model)(TEXTS), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(TEXTS), expected)


def test_second_derivatives_exist(tmp_path: Path) -> None:
    """GraSP differentiates twice, which fused attention kernels do not allow."""
    saved(tmp_path, "BertModel")
    model = load_source(f"hf:{tmp_path}").model.requires_grad_(True)
    weight = model.get_parameter("encoder.layer.0.attention.self.query.weight")
    (first,) = torch.autograd.grad(model(TEXTS).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.abs().sum() > 0


def test_weights_of_ones_own(tmp_path: Path) -> None:
    """Other weights for the network of a folder, as safetensors or as a pickle of tensors."""
    model = saved(tmp_path, "BertForSequenceClassification", num_labels=3)
    other = {name: value + 0.5 for name, value in model.state_dict().items()}
    for file in (tmp_path / "own.safetensors", tmp_path / "own.bin"):
        (save_file if file.suffix == ".safetensors" else torch.save)(other, file)
        loaded = load_source(f"hf:{tmp_path}", weights=file)
        state = loaded.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in other.items())
        assert str(file) in loaded.origin


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("classifier.weight"), "missing and would be random"),
        (lambda state: state.update(more=torch.zeros(2)), "no place in it"),
        (lambda state: state.update({"classifier.weight": torch.zeros(2, 2)}), "weights:"),
    ],
    ids=["missing", "unused", "shape"],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    complaint: str,
) -> None:
    """What transformers would fill with random numbers is an error here."""
    state = saved(tmp_path, "BertForSequenceClassification", num_labels=3).state_dict()
    change(state)
    file = tmp_path / "own.safetensors"
    save_file(state, file)
    with pytest.raises(InputError, match=complaint):
        load_source(f"hf:{tmp_path}", weights=file)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """A head that the file does not hold would be random: a headless file for a classifier."""
    saved(tmp_path, "BertModel")
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"classifier\.bias.*'architectures'"):
        load_source(f"hf:{tmp_path}")


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    """A pickle in the folder is not opened; it can be named with --weights."""
    model = saved(tmp_path, "BertModel")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"safetensors.*--weights FILE"):
        load_source(f"hf:{tmp_path}")
    loaded = load_source(f"hf:{tmp_path}", weights=tmp_path / "pytorch_model.bin")
    assert loaded.model(TEXTS).shape == (2, 16)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    """A configuration that names a class of its own is refused, and its file is not imported."""
    saved(tmp_path, "BertModel")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    config["architectures"] = ["OwnModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"OwnModel.*is not run"):
        load_source(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    """An encoder with a decoder needs ids for both."""
    config = transformers().T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="needs two inputs"):
        load_source(f"hf:{tmp_path}")


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    """Neither a folder nor in the cache: nothing is downloaded unasked."""
    with pytest.raises(InputError, match="allow-download"):
        load_source("hf:nobody/nothing-of-this-name")
    with pytest.raises(InputError, match="holds no config"):
        load_source(f"hf:{tmp_path}")


def test_the_nearest_name_in_the_cache_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not at hand may be a slip of the pen."""
    for name in ("models--prajjwal1--bert-tiny", "models--gpt2", "datasets--prajjwal1--bert-tiny"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"nearest .* 2 .*prajjwal1/bert-tiny\)"):
        load_source("hf:prajjwal1/bert-tinyy")


def test_an_image_network_says_how_it_was_trained(tmp_path: Path) -> None:
    """Size and channels from the configuration, normalisation from the preprocessor's file."""
    saved(tmp_path, "ViTForImageClassification", image_size=8, patch_size=4, num_labels=3)
    loaded = load_source(f"hf:{tmp_path}")
    assert loaded.inputs == InputSpec(shape=(3, 8, 8), kind="image", assumed=True)
    stated = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    loaded = load_source(f"hf:{tmp_path}")
    assert loaded.inputs == InputSpec(
        shape=(3, 8, 8), kind="image", mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)
    )
    assert loaded.model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_a_package_that_is_missing_names_its_extra() -> None:
    """The message is the command that installs it."""
    with pytest.raises(GapruneError, match=r"no_such_package.*gaprune\[hf\]"):
        import_extra("no_such_package", "hf", "target hf:x")
