"""The export formats by name: what each writes, and the code that loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gaprune import plugins
from gaprune.choices import EXPORT_FORMATS
from gaprune.errors import InputError
from gaprune.exports import compact, writers
from gaprune.exports import semi_structured_writer as semi_structured
from gaprune.exports.pruned_network import ExportOptions, PrunedNetwork
from gaprune.models import onnx


@dataclass(frozen=True)
class Exporter:
    """An export format.

    Attributes:
        description: one line for people.
        write: writes its files into an empty folder, and reads them back.
        file: the file that holds the network.
        loading: Python code that loads the file, run in its folder.
        library: the library that loads the file, as model hubs call it.
        options: the fields of `ExportOptions` that the format uses.
    """

    description: str
    write: Callable[[PrunedNetwork, Path, ExportOptions], None]
    file: str
    loading: str
    library: str
    options: frozenset[str] = frozenset()


_WEIGHTS = frozenset({"flush_subnormals"})  # of every format that holds weights
HF = "hf"  # the only format of networks without some of their experts

EXPORTERS: dict[str, Exporter] = {
    "dense": Exporter(
        EXPORT_FORMATS["dense"],
        writers.write_dense,
        writers.MODEL,
        f"""from safetensors.torch import load_file

model = ...  # the original class
model.load_state_dict(load_file("{writers.MODEL}"))""",
        "pytorch",
        _WEIGHTS,
    ),
    "masks": Exporter(
        EXPORT_FORMATS["masks"],
        writers.write_masks,
        writers.MASKS,
        f"""import gaprune

model = ...  # the dense network with its weights
gaprune.bake(gaprune.attach(model, gaprune.load_masks("{writers.MASKS}")))""",
        "gaprune",
    ),
    "prune": Exporter(
        EXPORT_FORMATS["prune"],
        writers.write_prune,
        writers.MODEL,
        f"""from safetensors.torch import load_file
from torch.nn.utils import prune

model = ...  # the original class
state = load_file("{writers.MODEL}")
for key in state:
    if key.endswith("_mask"):
        path, _, name = key.removesuffix("_mask").rpartition(".")
        prune.identity(model.get_submodule(path), name)
model.load_state_dict(state)""",
        "pytorch",
        _WEIGHTS,
    ),
    "sparse": Exporter(
        EXPORT_FORMATS["sparse"],
        writers.write_sparse,
        writers.SPARSE,
        f"""import gaprune

model = ...  # the original class
model.load_state_dict(gaprune.load_sparse("{writers.SPARSE}"))""",
        "gaprune",
        _WEIGHTS | {"half", "codebook", "compress"},
    ),
    "onnx": Exporter(
        EXPORT_FORMATS["onnx"],
        writers.write_onnx,
        onnx.FILE,
        f"""import onnxruntime

session = onnxruntime.InferenceSession("{onnx.FILE}")
outputs = session.run(None, {{"{onnx.INPUT}": inputs}})[0]  # inputs: [N, …]""",
        "onnx",
        _WEIGHTS,
    ),
    "compact": Exporter(
        EXPORT_FORMATS["compact"],
        compact.write_compact,
        compact.PROGRAM,
        f"""import torch

model = torch.export.load("{compact.PROGRAM}").module()  # gaprune is not needed
outputs = model(inputs)  # inputs: [N, …]; {writers.MODEL} is its state dict""",
        "pytorch",
        _WEIGHTS,
    ),
    "semi-structured": Exporter(
        EXPORT_FORMATS["semi-structured"],
        semi_structured.write_semi_structured,
        writers.MODEL,
        f"""import json
import torch
from torch.sparse import to_sparse_semi_structured
from gaprune.exports.semi_structured_writer import load_semi_structured

model = ...  # the original class
model.load_state_dict(load_semi_structured("."))
model = model.half().cuda()
with open("{semi_structured.LAYERS}") as file:
    layers = json.load(file)["layers"]
for name, facts in layers.items():
    if facts["sizes_fit_cuda"]:
        module = model.get_submodule(name.rpartition(".")[0])
        module.weight = torch.nn.Parameter(to_sparse_semi_structured(module.weight))""",
        "pytorch",
        _WEIGHTS | {"half"},
    ),
    HF: Exporter(
        EXPORT_FORMATS[HF],
        writers.write_hf,
        writers.MODEL,
        """from transformers import AutoModel  # or the class in config.json

model = AutoModel.from_pretrained(".")""",
        "transformers",
        _WEIGHTS,
    ),
}


def find_exporter(name: str) -> Exporter:
    """Return a built-in format or that of a plug-in; see `plugins.find_extension`."""
    read = plugins.require_type(Exporter)
    return plugins.find_extension("format", name, EXPORTERS, plugins.EXPORTERS, read)


def check_options(name: str, options: ExportOptions) -> None:
    """Raise InputError unless a format uses the options that aren't at their default."""
    options.check()
    exporter = find_exporter(name)
    # An option without effect is refused: it would promise something the file lacks.
    for option, value in vars(options).items():
        if value != getattr(ExportOptions(), option) and option not in exporter.options:
            users = ", ".join(key for key, other in EXPORTERS.items() if option in other.options)
            raise InputError(f"{option}: {name} does not use it, only {users}; leave it out")
