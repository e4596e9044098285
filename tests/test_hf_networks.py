"""`hf:NAME`: token ids in, one tensor out; no random weights, no foreign code, no download."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gaprune import export, prune_target
from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.models.input_spec import InputOptions, InputSpec
from gaprune.models.parametrizations import set_computed_weights
from gaprune.models.sources import load_source, optional_packages
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.outputs import choose_tower
from gaprune.models.sources.tokenizer import mask_of, pool_tokens
from gaprune.models.target import load_target, target_from_module
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import open_run
from gaprune.runs.prune import prepare_run

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
TEXTS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 0, 0, 0]])  # the second text is padded


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything tries to connect."""
    monkeypatch.setattr(socket.socket, "connect", pytest.fail)
    monkeypatch.setattr(socket, "getaddrinfo", pytest.fail)


def transformers() -> Any:  # noqa: ANN401 - a module
    """Import transformers as the source does."""
    return import_extra("transformers", "hf", "test")


def saved(folder: Path, network: str, **settings: Any) -> Any:  # noqa: ANN401 - sizes, a network
    """Write a small network of a class of transformers with seeded weights, and return it."""
    model_class = getattr(transformers(), network)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = model_class(model_class.config_class(**{**SIZES, **settings})).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return the folder of an encoder, and the encoder; tests must not change them."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, saved(folder, "BertModel")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return the folder of a text classifier, and the classifier; tests must not change them."""
    folder = tmp_path_factory.mktemp("classifier")
    return folder, saved(folder, "BertForSequenceClassification", num_labels=3)


@pytest.fixture
def folder(bert: tuple[Path, Any], tmp_path: Path) -> Path:
    """Return a copy of the encoder's folder that a test may change."""
    return Path(shutil.copytree(bert[0], tmp_path / "encoder"))


@torch.no_grad()
def reference(model: Any) -> Any:  # noqa: ANN401 - a network and its outputs
    """Call a network as the documentation of transformers says."""
    return model(input_ids=TEXTS, attention_mask=(TEXTS != 0).long())


@torch.no_grad()
def output_of(folder: Path, output: str | int | None = None, ids: Tensor = TEXTS) -> Tensor:
    """Return the output of the loaded network for ids alone."""
    outputs: Tensor = load_source(f"hf:{folder}", output=output).model(ids)
    return outputs


def edit_json(file: Path, **changes: object) -> None:
    """Change entries of a JSON file, which may be missing."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**content, **changes}))


@pytest.mark.slow
def test_default_outputs(bert: tuple[Path, Any], classifier: tuple[Path, Any]) -> None:
    """A classifier returns its logits; an encoder the mean over tokens without padding."""
    logits = reference(classifier[1]).logits
    torch.testing.assert_close(output_of(classifier[0]), logits, atol=1e-6, rtol=0)
    hidden = reference(bert[1]).last_hidden_state
    expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    torch.testing.assert_close(output_of(bert[0]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("output", ["mean", "cls"])
def test_padding_changes_nothing(bert: tuple[Path, Any], output: str) -> None:
    """A text has the same vector with and without padding."""
    alone = output_of(bert[0], output, TEXTS[1:, :2])
    assert torch.allclose(output_of(bert[0], output)[1:], alone, atol=1e-5)


@pytest.mark.parametrize("output", ["last_hidden_state", "pooler_output", 0, 1])
def test_any_output_can_be_chosen(bert: tuple[Path, Any], output: str | int) -> None:
    """An output is chosen by its name, or by its index in the tuple of transformers."""
    assert torch.allclose(output_of(bert[0], output), reference(bert[1])[output], atol=1e-6)


def test_a_missing_output_is_refused(bert: tuple[Path, Any]) -> None:
    """The error lists the outputs of this network."""
    with pytest.raises(InputError, match=r"'logits'.*'last_hidden_state': tensor \[2, 5, 16\]"):
        output_of(bert[0], "logits")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
    ids=["cls", "mean", "newer"],
)
def test_the_pooling_file_is_followed(
    folder: Path, config: dict[str, object], pooling: str
) -> None:
    """The pooling of a folder of sentence-transformers is the default output."""
    edit_json(folder / "1_Pooling" / "config.json", **config)
    assert torch.equal(output_of(folder), output_of(folder, pooling))


def test_an_unknown_pooling_is_refused(folder: Path) -> None:
    """A pooling that is not built in must be replaced by `--output`."""
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(InputError, match=r"pooling_mode_max_tokens.*mean, cls.*output="):
        load_source(f"hf:{folder}")
    with pytest.raises(InputError, match=r"'max'.*cls, mean"):
        pool_tokens(torch.nn.Identity(), "max")


def test_a_text_of_padding_alone() -> None:
    """A row of padding attends to itself, so that nothing becomes NaN."""
    ids = torch.tensor([[4, 0, 0], [0, 0, 0]])
    assert mask_of(ids, 0).tolist() == [[1, 0, 0], [1, 1, 1]]
    assert mask_of(ids, None).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_names_inputs_and_copies(bert: tuple[Path, Any]) -> None:
    """Names and bits are the file's; inputs are token ids; a pooling layer without use is absent.

    Copies and pickles return the same tensor.
    """
    file = load_file(bert[0] / "model.safetensors")
    loaded = load_source(f"hf:{bert[0]}")
    state = loaded.model.state_dict()
    assert all(torch.equal(value, file[name]) for name, value in state.items())
    assert file.keys() - state.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    assert "pooler.dense.weight" in load_source(f"hf:{bert[0]}", output=1).model.state_dict()
    assert loaded.inputs == InputSpec(shape=(40,), kind="tokens", vocabulary=50)
    assert "BertModel" in loaded.origin
    assert "output mean" in loaded.origin
    with torch.no_grad():
        expected = loaded.model(TEXTS)
        assert torch.equal(copy.deepcopy(loaded.model)(TEXTS), expected)
        assert torch.equal(pickle.loads(pickle.dumps(loaded.model))(TEXTS), expected)


def test_it_can_be_a_target(classifier: tuple[Path, Any]) -> None:
    """The loaded network is copied, frozen, run and masked like any other."""
    model = load_source(f"hf:{classifier[0]}").model
    target = target_from_module(model, inputs=InputOptions(shape=(9,), vocabulary=50))
    assert target.layout.names[-1] == "classifier.weight"
    masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in target.weights.items()}
    with torch.no_grad():
        logits = target.masked_copy(masks)(TEXTS)
    assert torch.equal(logits, target.model.get_parameter("classifier.bias").expand(2, 3))


def test_second_derivatives_exist(bert: tuple[Path, Any]) -> None:
    """GraSP differentiates twice, which fused attention kernels do not allow."""
    model = load_source(f"hf:{bert[0]}").model.requires_grad_(True)
    weight = model.get_parameter("encoder.layer.0.attention.self.query.weight")
    (first,) = torch.autograd.grad(model(TEXTS).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.abs().sum() > 0


@pytest.mark.parametrize("file", ["mine.safetensors", "mine.bin"])
def test_the_users_weights(classifier: tuple[Path, Any], tmp_path: Path, file: str) -> None:
    """Other weights for the network of a folder load from safetensors or a pickle of tensors."""
    other = {name: value + 0.5 for name, value in classifier[1].state_dict().items()}
    (torch.save if file.endswith("bin") else save_file)(other, tmp_path / file)
    loaded = load_source(f"hf:{classifier[0]}", weights=tmp_path / file)
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.items())
    assert file in loaded.origin


def test_weights_of_a_trainer(classifier: tuple[Path, Any], tmp_path: Path) -> None:
    """A checkpoint of Lightning loads: names behind the prefix of its module, a loss beside it."""
    state = {f"model.{name}": value for name, value in classifier[1].state_dict().items()}
    state["loss.weight"] = torch.ones(3)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    loaded = load_source(f"hf:{classifier[0]}", weights=tmp_path / "last.ckpt")
    loaded_state = loaded.model.state_dict()
    assert all(torch.equal(loaded_state[n], v) for n, v in classifier[1].state_dict().items())
    assert "loss.weight" in loaded.origin


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.weight"), "missing .*classifier"),
        (lambda state: state.update(more=torch.zeros(2)), "more"),
        (lambda state: state.update({"classifier.weight": torch.zeros(2, 2)}), "weights:"),
    ],
    ids=["missing", "unused", "shape"],
)
def test_weights_that_do_not_fit_are_refused(
    classifier: tuple[Path, Any],
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    message: str,
) -> None:
    """Weights that transformers would fill with random numbers are an error."""
    state = classifier[1].state_dict()
    change(state)
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match=message):
        load_source(f"hf:{classifier[0]}", weights=tmp_path / "mine.safetensors")


def test_a_folder_that_lacks_weights_is_refused(folder: Path) -> None:
    """An encoder's file lacks the head of a classifier, which would be random."""
    edit_json(folder / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(InputError, match=r"classifier\.bias.*'architectures'"):
        load_source(f"hf:{folder}")


def test_only_safetensors_are_read(folder: Path) -> None:
    """A pickle in the folder is not opened; it can be named with --weights."""
    pickled = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), pickled)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"safetensors.*weights=FILE"):
        load_source(f"hf:{folder}")
    assert load_source(f"hf:{folder}", weights=pickled).model(TEXTS).shape == (2, 16)


def test_code_in_a_folder_is_not_run(folder: Path) -> None:
    """A configuration that names a class of its own is refused, and its file is not imported."""
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    edit_json(folder / "config.json", auto_map=auto_map, architectures=["OwnModel"])
    with pytest.raises(InputError, match="OwnModel"):
        load_source(f"hf:{folder}")
    assert not (folder / "ran").exists()


def test_names_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names list the nearest in the cache; nothing is downloaded without permission."""
    cache, empty = (tmp_path / name for name in ("cache", "empty"))
    empty.mkdir()
    for name in ("models--prajjwal1--bert-tiny", "models--gpt2", "datasets--prajjwal1--bert-tiny"):
        (cache / name).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for name, message in (
        ("nobody/nothing-of-this-name", "allow.download"),
        ("prajjwal1/bert-tinyy", r" 2 .*prajjwal1/bert-tiny\)"),
        (str(empty), r"config\.json"),
    ):
        with pytest.raises(InputError, match=message):
            load_source(f"hf:{name}")


def test_texts_are_no_longer_than_the_network_allows(tmp_path: Path) -> None:
    """Under either name that configurations have for the limit."""
    limits = {"OPTForCausalLM": {"ffn_dim": 8}, "MptForCausalLM": {"max_seq_len": 40, "n_heads": 2}}
    for network, sizes in limits.items():
        saved(tmp_path / network, network, **sizes)
        target = load_target(f"hf:{tmp_path / network}")
        assert target.inputs.shape == (40,)


def test_image_networks(tmp_path: Path) -> None:
    """Size and channels come from the configuration, normalisation from the preprocessor."""
    saved(tmp_path, "ViTForImageClassification", image_size=8, patch_size=4, num_labels=3)
    loaded = load_source(f"hf:{tmp_path}")
    assert loaded.inputs == InputSpec(shape=(3, 8, 8), kind="image", assumed=True)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    edit_json(tmp_path / "preprocessor_config.json", image_mean=mean, image_std=std)
    loaded = load_source(f"hf:{tmp_path}")
    assert loaded.inputs == InputSpec(shape=(3, 8, 8), kind="image", mean=mean, std=std)
    assert loaded.model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_gguf_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file needs packages that only its extra installs."""
    known = importlib.util.find_spec
    monkeypatch.setattr(
        optional_packages, "find_spec", lambda name: None if name == "gguf" else known(name)
    )
    (tmp_path / "net.gguf").write_bytes(b"GGUF")
    with pytest.raises(GapruneError, match=r"gaprune\[gguf\]"):
        load_source(f"hf:{tmp_path}/net.gguf")


def write_gguf(file: Path, model: Any) -> None:  # noqa: ANN401 - a Llama of transformers
    """Write a Llama with the package of llama.cpp, which orders query and key rows its own way."""
    gguf, config = pytest.importorskip("gguf"), model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            halves = values.reshape(config.num_attention_heads, 2, config.head_dim // 2, -1)
            values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_network_that_was_written(tmp_path: Path) -> None:
    """Its weights are unpacked, sizes and vocabulary come from the file, no folder is needed."""
    model = saved(tmp_path, "LlamaForCausalLM", tie_word_embeddings=False)
    write_gguf(tmp_path / "net.gguf", model)
    loaded = load_source(f"hf:{tmp_path}/net.gguf")
    assert loaded.inputs is not None
    assert (loaded.inputs.shape, loaded.inputs.vocabulary) == ((40,), 50)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(TEXTS[:1]), model(TEXTS[:1]).logits)
    settings = make_settings({**QUICK, "calibration": ("uniform",)})
    result = prune_target(load_target(f"hf:{tmp_path}/net.gguf"), settings)
    exported = export(result, "hf", tmp_path / "exported")
    again = transformers().LlamaForCausalLM.from_pretrained(exported.path)
    with torch.no_grad():
        torch.testing.assert_close(
            again(TEXTS[:1]).logits, result.pruned_model()(input_ids=TEXTS[:1])
        )


def test_a_missing_package_names_its_extra() -> None:
    """The error contains the command that installs the package."""
    with pytest.raises(GapruneError, match=r"no-such-package.*gaprune\[hf\]"):
        import_extra("no_such_package", "hf", "target hf:x")


SPEECH = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
PAIR = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "d_model": 16,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
T5 = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8}
QUICK = {"sparsity": 0.5, "method": "magnitude", "calibration_count": 8, "validation_count": 8}


def clip(folder: Path) -> Any:  # noqa: ANN401 - a network
    """Write a small CLIP, and return it."""
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32}
    text = {**sizes, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    return saved(folder, "CLIPModel", text_config=text, vision_config=vision)


def run_of(spec: str, out: Path, **options: object) -> Any:  # noqa: ANN401 - a result
    """Prune a network as the command line does, and write the run directory."""
    job = make_job({"target": spec, **QUICK, **options})
    with open_run(out) as directory:
        target, test = job.load()
        result = prepare_run(target, job.checked, test=test, run_directory=directory, job=job).run()
        directory.save(result, job)
    return result


def test_a_speech_network_is_folded(tmp_path: Path) -> None:
    """The position convolution is folded by default, and export `hf` writes it as it was.

    Weights are equal to rounding there, also where a part without any weight has no direction.
    """
    model = saved(tmp_path / "net", "HubertModel", **SPEECH)
    name = "encoder.pos_conv_embed.conv.weight"
    with pytest.raises(InputError, match="fold_parametrizations"):
        load_target(f"hf:{tmp_path / 'net'}", fold_parametrizations=False)
    result = run_of(f"hf:{tmp_path / 'net'}", tmp_path / "run", input_shape=(200,))
    assert result.target.folded == (name,)
    sound = torch.randn(2, 200)
    expected = model(sound).last_hidden_state
    torch.testing.assert_close(result.target.model(sound), expected.detach())
    export(tmp_path / "run", format="hf", out=tmp_path / "export")
    written = type(model).from_pretrained(tmp_path / "export").state_dict()
    assert written.keys() == model.state_dict().keys()
    pruned = result.state_dict()[name].clone()
    pruned[:, :, 0] = 0
    rest = set_computed_weights(model, {name: pruned, "other": sound})
    assert list(rest) == ["other"]
    convolution = model.get_submodule(name.rpartition(".")[0])
    torch.testing.assert_close(convolution.weight, pruned)
    assert torch.equal(convolution.weight == 0, pruned == 0)


@pytest.mark.parametrize(
    ("network", "settings", "tower", "inputs"),
    [
        ("WhisperForConditionalGeneration", PAIR, "encoder", ((8, 20), "signal")),
        ("T5ForConditionalGeneration", T5, "encoder", ((40,), "tokens")),
        ("CLIPModel", {}, "vision_model", ((3, 8, 8), "image")),
        ("CLIPModel", {}, "text_model", ((64,), "tokens")),
    ],
)
def test_one_tower(
    tmp_path: Path,
    network: str,
    settings: dict[str, Any],
    tower: str,
    inputs: tuple[tuple[int, ...], str],
) -> None:
    """A tower is pruned alone with the names of its own state dict; without, towers are named."""
    folder = tmp_path / "net"
    model = clip(folder) if network == "CLIPModel" else saved(folder, network, **settings)
    with pytest.raises(InputError, match=rf"tower.*{tower}"):
        load_target(f"hf:{folder}")
    target = load_target(f"hf:{folder}", tower=tower)
    assert (target.inputs.shape, target.inputs.kind) == inputs
    part = choose_tower(model, tower)
    state = target.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in part.state_dict().items())


def test_a_tower_is_written_into_its_network(tmp_path: Path) -> None:
    """Export `hf` writes the whole network; the other tower keeps its weights."""
    model = clip(tmp_path / "net")
    result = run_of(f"hf:{tmp_path / 'net'}", tmp_path / "run", tower="vision_model")
    export(tmp_path / "run", format="hf", out=tmp_path / "export")
    written = type(model).from_pretrained(tmp_path / "export").state_dict()
    pruned = {f"vision_model.{name}": value for name, value in result.state_dict().items()}
    expected = {**model.state_dict(), **pruned}
    assert all(torch.equal(written[name], value) for name, value in expected.items())


def test_a_classifier_on_half_of_a_pair(tmp_path: Path) -> None:
    """A class is judged by what it runs on, not by the configuration of its family."""
    saved(tmp_path, "WhisperForAudioClassification", **PAIR, num_labels=3)
    target = load_target(f"hf:{tmp_path}")
    assert target.model(target.example()).shape == (1, 3)
