"""Try channel removal on the architectures of timm, with random weights.

Each is right (the smaller network equals the masked one for a third of every group), refused in
words before any search, or a failure; or it is not tried: it takes too long, or none of the sizes.
One of each of timm's modules comes first, then all, small ones first. One JSON line each; a run
continues the file that is there.

    python -m benchmarks.timm_channels --out timm.jsonl --limit 50
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaprune.errors import GapruneError, first_line
from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_removal import check_same
from gaprune.models.channel_slicing import num_outputs, sliced_copy, zeroed_copy
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.time_limit import TimeIsUp

SIZES = (64, 96, 128, 160, 192, 224)  # of images, the smallest that an architecture accepts
BUILD_SECONDS = 10.0
SIZE_WORDS = (  # of names, from small to large
    *("test", "zepto", "atto", "femto", "pico", "nano", "xxs", "xxt", "xxtiny", "xs", "xt"),
    *("xtiny", "t", "tiny", "mini", "s", "small", "m", "medium", "b", "base", "l", "large"),
    *("xl", "xlarge", "xxl", "xxlarge", "h", "huge", "g", "giant", "gigantic"),
)


def main() -> None:
    """Try the asked architectures, small ones first, and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="*", help="names, as a pattern of timm")
    parser.add_argument("--limit", type=int, help="architectures to try now")
    parser.add_argument("--seconds", type=float, help="begin no other after so many seconds")
    parser.add_argument("--each", type=float, default=300.0, help="seconds for an architecture")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, continued")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    timm = import_extra("timm", "timm", "timm_channels")
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    records = [json.loads(line) for line in lines]
    done = {record["name"] for record in records}
    names = [name for name in _ordered(timm, options.only) if name not in done]
    started = time.monotonic()
    with options.out.open("a") as file:
        for name in names[: options.limit]:
            if options.seconds and time.monotonic() - started > options.seconds:
                break
            records.append({"name": name, **try_architecture(timm, name, options.each)})
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
    print(dict(Counter(record["outcome"] for record in records)))


def _ordered(timm: Any, only: str) -> list[str]:  # noqa: ANN401 - an optional package
    """Return the names, those that seem small first, beginning with one of each module."""
    names = sorted(timm.list_models(only), key=_seeming_size)
    first_of = {timm.model_entrypoint(name).__module__: name for name in reversed(names)}
    return sorted(names, key=lambda name: name not in first_of.values())


def _seeming_size(name: str) -> tuple[int, int]:
    """Return the size that the words and numbers of a name promise: building all takes minutes."""
    words = re.split(r"[_\d]+", name)
    sizes = [SIZE_WORDS.index(word) for word in words if word in SIZE_WORDS]
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return max(sizes, default=SIZE_WORDS.index("small")), next(iter(numbers), 0)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise `TimeIsUp`, which no handler of a network's errors catches, after CPU seconds."""

    def stop(*_: object) -> None:
        raise TimeIsUp

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def try_architecture(timm: Any, name: str, limit: float) -> dict[str, Any]:  # noqa: ANN401
    """Return the outcome (right, refused, failed or not tried), groups and seconds."""
    started = time.process_time()
    torch.manual_seed(0)
    try:
        with _limit(BUILD_SECONDS):
            model, example = _build(timm, name)
    except TimeIsUp:
        return {"outcome": "not tried", "why": f"takes more than {BUILD_SECONDS:.0f} s to build"}
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises
        return {"outcome": "not tried", "why": first_line(error)}
    try:
        with _limit(limit):
            record = _tried(model, example)
    except TimeIsUp:
        record = {"outcome": "not tried", "why": f"takes more than {limit:.0f} s"}
    except Exception as error:  # noqa: BLE001 - a failure is what is looked for
        record = {"outcome": "failed", "why": f"{type(error).__name__}: {first_line(error)}"}
    return {**record, "seconds": round(time.process_time() - started, 1)}


def _build(timm: Any, name: str) -> tuple[nn.Module, torch.Tensor]:  # noqa: ANN401
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
    try:
        graph = ChannelGraph.trace(model, example)
    except GapruneError as error:
        return {"outcome": "refused", "why": str(error)}
    whole = graph.whole_layers()
    reasons = dict(Counter(whole.values()).most_common(5))
    removable = sum(len(sets.outputs) for group in graph.groups for sets in group.channels)
    facts = {"groups": len(graph.groups), "removable": removable, "fixed": len(graph.fixed)}
    asked = _draw([group.channels for group in graph.groups if len(group.channels) > 1])
    if not asked:
        return {"outcome": "refused", "why": "every layer stays whole", "reasons": reasons, **facts}
    removal = graph.removal(asked)
    for layer, channels in removal.outputs.items():
        if not 0 <= min(channels) <= max(channels) < num_outputs(model.get_submodule(layer)):
            raise IndexError(f"{layer} has no channel {channels}")
    check_same(sliced_copy(model, removal), zeroed_copy(model, removal), example, "channels")
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
