"""Names that users choose from, for the help and for shells, without the code behind them.

The code imports torch, and help must answer at once. Every list is that of a registry in the
package that owns the code; a test compares them.
"""

from __future__ import annotations

ZOO = ("mnist-mlp", "mnist-cnn", "lenet", "mobile-student", "four-layer")
FEW_EXAMPLES = 32  # of `--inputs` from which they are the calibration inputs themselves
INPUT_KINDS = ("image", "signal", "tokens", "vector")
CRITERIA = (
    *("random", "magnitude", "lamp", "erk", "synflow", "snip", "grasp", "taylor", "wanda"),
    *("wanda-rows", "lamp-wanda", "lamp-wanda-rows", "correlation", "swaps", "correlation-swaps"),
)
# name → the pattern that it ranks
UNIT_CRITERIA = {"conditional": "channel", "conditional-loss": "channel", "reap": "expert"}
METHODS = (
    *CRITERIA,
    *("magnitude-layer", "threshold", "structured-l1", "structured-l2"),
    *("structured-l1-repaired", "batchnorm-scale", "neuron-merging", "folding"),
    *("clustered", "evolved", "edge-popup", "distilled", "imp", "slimming"),
    *(f"{name}-layer" for name in CRITERIA if name != "magnitude"),
)
PICTURES = ("blobs", "contours", "dead-leaves", "fields", "glyphs", "outlines", "strokes")
CALIBRATION = (
    *("auto", "procedural", "impressions", "inversion", "self-text", *PICTURES, "noise"),
    *("mnist-test", "mnist-train"),
)
OBJECTIVES = ("kl", "scaled-kl", "agreement", "accuracy", "logits", "relative-error")
SCOPES = {
    "allocated": "each layer has its own keep count under one exact total; the counts evolve",
    "global": "all layers share one ranking",
    "layer": "every layer keeps the same density",
}
PRECISIONS = ("float32", "bfloat16", "float16", "auto")
RUNTIMES = ("torch", "torch-compile", "torch-csr", "onnxruntime")
SCHEDULES = ("linear", "long", "cubic", "direct", "rewind")
OPTIMISERS, DECAYS = ("adam", "sgd"), ("constant", "cosine")
SWEEPS = ("threshold", "clusters")
EXPORT_FORMATS = {
    "dense": "the whole state dict with zeros, for the original class",
    "masks": "one bit per prunable weight, for users of the dense network",
    "prune": "weight_orig and weight_mask, for a network under torch.nn.utils.prune",
    "sparse": "the kept weights and their positions, the smallest file",
    "onnx": "an ONNX file, compared with torch in ONNX Runtime",
    "compact": "a smaller network without unused channels, as a program of torch.export",
    "semi-structured": "2:4 checked in every group, for to_sparse_semi_structured on CUDA; packed "
    "in 16 bits",
    "hf": "a folder that transformers opens; for networks of hf:NAME",
}


def listed(names: object) -> str:
    """Return names as a placeholder of the help: `[adam|sgd]`."""
    return f"[{'|'.join(names)}]"  # type: ignore[arg-type]
