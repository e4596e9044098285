"""The formats by name: what each writes, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gaprune import plugins
from gaprune.errors import InputError, unknown_name
from gaprune.export import compact, hf_folder, onnx_writer
from gaprune.export import semi_structured_writer as semi_structured
from gaprune.export import state_dicts as states
from gaprune.export.pruned_network import PrunedNetwork
from gaprune.export.sparse_entries import ExportOptions
from gaprune.models import onnx


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        description: one line for people.
        write: writes its files into an empty folder, and reads them back.
        file: the file that is the network.
        loading: Python code that loads it, from within the folder.
        library: the library that loads it, as model hubs call it.
        takes: the fields of `ExportOptions` that it heeds.
    """

    description: str
    write: Callable[[PrunedNetwork, Path, ExportOptions], None]
    file: str
    loading: str
    library: str
    takes: frozenset[str] = frozenset()


EXPORTERS: dict[str, Exporter] = {
    "dense": Exporter(
        "the whole state dict with zeros, for the original class",
        states.write_dense,
        states.MODEL,
        f"""from safetensors.torch import load_file

model = ...  # the original class
model.load_state_dict(load_file("{states.MODEL}"))""",
        "pytorch",
    ),
    "masks": Exporter(
        "one bit per prunable weight, for whoever has the dense network",
        states.write_masks,
        states.MASKS,
        f"""import gaprune

model = ...  # the dense network with its weights
gaprune.bake(gaprune.attach(model, gaprune.load_masks("{states.MASKS}")))""",
        "gaprune",
    ),
    "prune": Exporter(
        "weight_orig and weight_mask, for a network under torch.nn.utils.prune",
        states.write_prune,
        states.MODEL,
        f"""from safetensors.torch import load_file
from torch.nn.utils import prune

model = ...  # the original class
state = load_file("{states.MODEL}")
for key in state:
    if key.endswith("_mask"):
        path, _, name = key.removesuffix("_mask").rpartition(".")
        prune.identity(model.get_submodule(path), name)
model.load_state_dict(state)""",
        "pytorch",
    ),
    "sparse": Exporter(
        "the kept weights and their places, the smallest file",
        states.write_sparse,
        states.SPARSE,
        f"""import gaprune

model = ...  # the original class
model.load_state_dict(gaprune.load_sparse("{states.SPARSE}"))""",
        "gaprune",
        frozenset({"half", "codebook", "compress"}),
    ),
    "onnx": Exporter(
        "an ONNX file, compared with torch in ONNX Runtime",
        onnx_writer.write_onnx,
        onnx.FILE,
        f"""import onnxruntime

session = onnxruntime.InferenceSession("{onnx.FILE}")
outputs = session.run(None, {{"{onnx.INPUT}": inputs}})[0]  # inputs: [N, …]""",
        "onnx",
    ),
    "compact": Exporter(
        "a smaller network without the channels that nobody reads, as a program of torch.export",
        compact.write_compact,
        compact.PROGRAM,
        f"""import torch

model = torch.export.load("{compact.PROGRAM}").module()  # gaprune is not needed
outputs = model(inputs)  # inputs: [N, …]; {states.MODEL} is its state dict""",
        "pytorch",
    ),
    "semi-structured": Exporter(
        "2:4 checked in every group, for to_sparse_semi_structured on CUDA; packed in 16 bits",
        semi_structured.write_semi_structured,
        states.MODEL,
        f"""import json
import torch
from torch.sparse import to_sparse_semi_structured
from gaprune.export.semi_structured_writer import load_semi_structured

model = ...  # the original class
model.load_state_dict(load_semi_structured("."))
model = model.half().cuda()
with open("{semi_structured.PROVENANCE}") as file:
    layers = json.load(file)["layers"]
for name, facts in layers.items():
    if facts["sizes_fit_cuda"]:
        module = model.get_submodule(name.rpartition(".")[0])
        module.weight = torch.nn.Parameter(to_sparse_semi_structured(module.weight))""",
        "pytorch",
        frozenset({"half"}),
    ),
    "hf": Exporter(
        "a folder that transformers opens; for networks of hf:NAME",
        hf_folder.write_hf,
        states.MODEL,
        """from transformers import AutoModel  # or the class in config.json

model = AutoModel.from_pretrained(".")""",
        "transformers",
    ),
}


def find_exporter(form: str, how: ExportOptions) -> Exporter:
    """Return a format by name, once it is sure that it heeds what is asked.

    Raises:
        InputError: an unknown name, or an option that this format has no use for.
    """
    exporter = exporter_of(form)
    how.check()
    for name, value in vars(how).items():
        if value != getattr(ExportOptions(), name) and name not in exporter.takes:
            users = ", ".join(key for key, one in EXPORTERS.items() if name in one.takes)
            raise InputError(f"{name}: {form} has no use for it, only {users}; leave it out")
    return exporter


def exporter_of(form: str) -> Exporter:
    """Return a format by name: our own, or a plug-in's.

    Raises:
        InputError: an unknown name, or a plug-in that is broken.
    """
    found = EXPORTERS.get(form)
    if found is None:
        found = plugins.find_plugin(plugins.EXPORTERS, form, plugins.require_type(Exporter))
    if found is None:
        raise unknown_name(
            "format", form, [*EXPORTERS, *plugins.plugin_names(plugins.EXPORTERS, EXPORTERS)]
        )
    return found
