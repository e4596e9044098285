"""Write docs/reference/architectures.md: what gaprune prunes of 30 architectures.

Every network is small and has random weights: the table shows what works, not how well. It takes
minutes, so the tests do not run it; `--check` compares the page with a new one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import gaprune
from gaprune.callbacks import Observer
from gaprune.config import make_settings
from gaprune.models.sources.optional_packages import import_extra

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "architectures.md"
PATTERNS = ("unstructured", "channel", "2:4")
SETTINGS = {"method": "magnitude", "calibration_count": 8, "validation_count": 8}
COUNT = 16  # inputs; a choice among generators would take longer than everything else
LISTED = 2  # layers left whole that are named
SIDE = 64  # pixels
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
SPEECH = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
PAIR = {
    "d_model": 32,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "decoder_start_token_id": 0,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
}
PICTURES = {"image_size": 32, "patch_size": 8}
TOWERS = {"text_config": SIZES, "vision_config": {**SIZES, **PICTURES}, "projection_dim": 16}
LXMERT = {
    **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_attention_heads")},
    **dict.fromkeys(("l_layers", "x_layers", "r_layers"), 1),
    "intermediate_size": 64,
    "visual_feat_dim": 8,
    "num_qa_labels": 10,
}
QUESTIONS = {
    "input_ids": torch.arange(2 * 12).reshape(2, 12) + 1,
    "visual_feats": torch.linspace(-1, 1, 2 * 5 * 8).reshape(2, 5, 8),
    "visual_pos": torch.linspace(0, 1, 2 * 5 * 4).reshape(2, 5, 4),
}


class Row(NamedTuple):
    """A network, what gaprune is told, and how the command line says that."""

    name: str
    load: Callable[[Path], Any]  # a folder for its files → the target
    option: str = ""


def _timm(name: str, _folder: Path, **settings: Any) -> Any:  # noqa: ANN401 - a target
    timm = import_extra("timm", "timm", "architectures")
    model = timm.create_model(name, num_classes=10, **settings).eval()
    weights = _folder / "weights.pt"
    torch.save(model.state_dict(), weights)
    inputs = gaprune.InputOptions(shape=(3, SIDE, SIDE))
    return gaprune.load_target(f"timm:{name}", weights=weights, inputs=inputs)


def _hf(name: str, settings: dict[str, Any], folder: Path, **options: Any) -> Any:  # noqa: ANN401
    network = getattr(import_extra("transformers", "hf", "architectures"), name)
    network(network.config_class(**settings)).save_pretrained(folder)
    return gaprune.load_target(f"hf:{folder}", **options)


def _rows() -> Iterator[Row]:
    for name in (
        *(
            "resnet10t",
            "semnasnet_050",
            "edgenext_xx_small",
            "regnetx_002",
            "repghostnet_050",
            "dla46_c",
        ),
        *("mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_lite0", "mixnet_s"),
        *("ghostnet_050", "lcnet_050", "tinynet_e", "convnext_atto", "mobilevit_xxs"),
    ):
        yield Row(f"timm:{name}", partial(_timm, name))
    variants: tuple[tuple[str, dict[str, Any]], ...] = (
        ("BertForSequenceClassification", SIZES),
        ("DistilBertForSequenceClassification", SIZES),
        ("RobertaForSequenceClassification", {**SIZES, "max_position_embeddings": 80}),
        ("ElectraForSequenceClassification", SIZES),
        ("GPT2LMHeadModel", SIZES),
        ("LlamaForCausalLM", SIZES),
        ("MixtralForCausalLM", {**SIZES, "num_local_experts": 2, "num_key_value_heads": 2}),
        ("ViTForImageClassification", {**SIZES, **PICTURES}),
        ("DeiTForImageClassification", {**SIZES, **PICTURES}),
    )
    for name, settings in variants:
        yield Row(f"hf: {name}", partial(_hf, name, settings))
    sound = gaprune.InputOptions(shape=(800,))
    folded = "default: `--fold-parametrizations`"
    for name in ("Wav2Vec2ForSequenceClassification", "HubertForSequenceClassification"):
        load = partial(_hf, name, {**SIZES, **SPEECH}, inputs=sound)
        yield Row(f"hf: {name}", load, folded)
    parts: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("WhisperForConditionalGeneration", {**SIZES, **PAIR}, "encoder"),
        ("T5ForConditionalGeneration", {**SIZES, "d_kv": 8, "d_ff": 64}, "encoder"),
        ("CLIPModel", TOWERS, "vision_model"),
    )
    for name, settings, tower in parts:
        yield Row(f"hf: {name}", partial(_hf, name, settings, tower=tower), f"`--tower {tower}`")
    options: dict[str, Any] = {"output": "question_answering_score", "example_inputs": QUESTIONS}
    load = partial(_hf, "LxmertForQuestionAnswering", LXMERT, **options)
    option = "`--inputs FILE.npz --output question_answering_score`"
    yield Row("hf: LxmertForQuestionAnswering", load, option)


def table() -> str:
    """Return the table as Markdown; a network that is refused has its reason in its row."""
    heads = ("network", "single weights", "channels", "2:4", "prunable", "left whole", "option")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---:|---|---|"]
    for row in _rows():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells = list(_cells(row, Path(folder)))
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _cells(row: Row, folder: Path) -> Iterator[str]:
    yield f"`{row.name}`"
    try:
        target = row.load(folder)
    except (gaprune.GapruneError, OSError, RuntimeError) as error:
        yield from (_reason(error), "", "", "", "", row.option)
        return
    stated = dict(SETTINGS)
    if not target.inputs.examples:
        stated["calibration"] = (str(_inputs(target.inputs, folder)),)
    for pattern in PATTERNS:
        try:
            settings = make_settings({"sparsity": 0.5, "pattern": pattern, **stated})
            gaprune.prune_target(target, settings, observer=Observer())
        except gaprune.GapruneError as error:
            yield _reason(error)
        else:
            yield "yes"
    parameters = {n: p.numel() for n, p in target.model.named_parameters() if p.is_floating_point()}
    yield f"{target.layout.total / sum(parameters.values()):.0%}"
    left = {name: size for name, size in parameters.items() if name not in target.layout.names}
    largest = sorted(left, key=lambda name: -left[name])[:LISTED]
    yield ", ".join(f"`{name}`" for name in largest) + (", …" if left.keys() - largest else "")
    yield row.option


def _inputs(spec: Any, folder: Path) -> Path:  # noqa: ANN401 - of a target
    """Write random inputs; bytes are scaled to the range of the network."""
    highest = spec.vocabulary if spec.kind == "tokens" else 256
    values = np.random.default_rng(0).integers(highest, size=(COUNT, *spec.shape))
    path = folder / "inputs.npy"
    np.save(path, values if spec.kind == "tokens" else values.astype(np.uint8))
    return path


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0].partition("; ")[0].replace("|", "\\|")
    return f"no: {text[:140]}"


def page() -> str:
    """Return the whole page."""
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "timm", "transformers"))
    return f"""# Architectures

What gaprune prunes of 30 architectures. `python scripts/architectures.py` makes this page with
{versions}: every network is small, has random weights and is pruned to half of its
weights by magnitude, so the table says what runs and what stays whole, not how much a trained
network loses. "Prunable" is the fraction of all floating-point weights; `--prune-also` adds
others. Channels that cannot be removed stay whole, and `--dry-run` gives the reason.

{table()}

A part that `--tower NAME` takes has the names of its own state dict in all files:
`model.get_submodule(NAME).load_state_dict(…)` loads them. `gaprune export --format hf` writes the
whole network. Weights that `--fold-parametrizations` makes plain have plain names too; to load
them, fold the network first: `gaprune.fold_parametrizations(model).load_state_dict(…)`.
"""


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if the page differs")
    check, text = parser.parse_args().check, page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    return int(PAGE.read_text(encoding="utf-8") != text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
