"""Try channel removal on the architectures of timm, with random weights.

Each is right (the smaller network equals the masked one for a third of every group), refused in
words before any search, or a failure. One JSON line each; a run continues the file that is there.

    python -m benchmarks.timm_channels --out timm.jsonl --limit 50
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaprune.errors import GapruneError, first_line
from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_removal import remove_channels
from gaprune.models.channel_slicing import num_outputs
from gaprune.models.sources.optional_packages import import_extra

SIZES = (64, 96, 128, 224)  # of images, the smallest that an architecture accepts
BUILD_SECONDS = 10.0


def main() -> None:
    """Try the asked architectures, small ones first, and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="*", help="names, as a pattern of timm")
    parser.add_argument("--limit", type=int, help="architectures to try now")
    parser.add_argument("--seconds", type=float, help="begin no other after so many seconds")
    parser.add_argument("--every", type=int, default=1, help="try each n-th of the names")
    parser.add_argument("--most", type=float, default=60.0, help="millions of parameters")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, continued")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    timm = import_extra("timm", "timm", "timm_channels")
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    records = [json.loads(line) for line in lines]
    done = {record["name"] for record in records}
    names = [name for name in timm.list_models(options.only)[:: options.every] if name not in done]
    started = time.monotonic()
    with options.out.open("a") as file:
        for name in names[: options.limit]:
            if options.seconds and time.monotonic() - started > options.seconds:
                break
            records.append({"name": name, **try_architecture(timm, name, options.most)})
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
    print(dict(Counter(record["outcome"] for record in records)))


def try_architecture(timm: Any, name: str, most: float) -> dict[str, Any]:  # noqa: ANN401 - an optional package
    """Return the outcome (right, refused, failed or skipped), groups and seconds."""
    started = time.monotonic()
    torch.manual_seed(0)
    try:
        model, example = _build(timm, name, most)
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises
        return {"outcome": "skipped", "why": first_line(error)}
    seconds = time.monotonic() - started
    if seconds > BUILD_SECONDS:
        return {"outcome": "skipped", "why": f"builds in {seconds:.0f} s"}
    try:
        record = _tried(model, example)
    except GapruneError as error:
        record = {"outcome": "refused", "why": str(error)}
    except Exception as error:  # noqa: BLE001 - a failure is what is looked for
        record = {"outcome": "failed", "why": f"{type(error).__name__}: {first_line(error)}"}
    return {**record, "seconds": round(time.monotonic() - started, 1)}


def _build(timm: Any, name: str, most: float) -> tuple[nn.Module, torch.Tensor]:  # noqa: ANN401
    with torch.device("meta"):
        count = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
    if count > most * 1e6:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    for size in SIZES:
        example = torch.rand(1, 3, size, size)
        try:
            with torch.no_grad():
                output = model(example)
        except Exception:  # noqa: BLE001, S112 - the network's own check of its input size
            continue
        if isinstance(output, torch.Tensor):
            return model, example
    raise ValueError("takes none of the sizes")


def _tried(model: nn.Module, example: torch.Tensor) -> dict[str, Any]:
    graph = ChannelGraph.trace(model, example)
    for group in graph.groups:
        for layer, channel in (output for sets in group.channels for output in sets.outputs):
            if not 0 <= channel < num_outputs(model.get_submodule(layer)):
                raise IndexError(f"{layer} has no channel {channel}")
    whole = graph.whole_layers()
    reasons = dict(Counter(whole.values()).most_common(5))
    removable = sum(len(sets.outputs) for group in graph.groups for sets in group.channels)
    facts = {"groups": len(graph.groups), "removable": removable, "fixed": len(graph.fixed)}
    asked = _draw([group.channels for group in graph.groups if len(group.channels) > 1])
    if not asked:
        return {"outcome": "refused", "why": "every layer stays whole", "reasons": reasons, **facts}
    remove_channels(model, example, asked)  # compares the smaller network with the masked one
    return {"outcome": "right", "reasons": reasons, **facts}


def _draw(groups: Sequence[Sequence[Any]]) -> dict[str, list[int]]:
    """Draw a third of every group; return layer → channels."""
    draw = random.Random(0)
    asked: dict[str, list[int]] = {}
    for sets in groups:
        for channels in draw.sample(sets, max(1, len(sets) // 3)):
            layer, channel = channels.outputs[0]
            asked.setdefault(layer, []).append(channel)
    return asked


if __name__ == "__main__":
    main()
