"""What operations of ATen do with channels, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """A call of an operation of ATen during a forward pass.

    Attributes:
        tensors: those among its arguments.
        output: a tensor, or several in any structure.
        site: the operation and the module that calls it, for people.
    """

    operation: Any  # torch's own types of operations are private
    args: tuple[Any, ...]
    named: dict[str, Any]
    tensors: list[Tensor]
    output: Any
    site: str

    @property
    def name(self) -> str:
        """The operation without the underscore of in-place variants."""
        return name_of(self.operation).rstrip("_")

    @property
    def is_in_place(self) -> bool:
        """Whether the operation changes its first argument."""
        return name_of(self.operation).endswith("_")

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, also those with their default value."""
        parameters = self.operation._schema.arguments  # noqa: SLF001 # no public name
        defaults = {p.name: p.default_value for p in parameters if p.has_default_value()}
        names = (parameter.name for parameter in parameters)
        return defaults | dict(zip(names, self.args, strict=False)) | self.named


def name_of(operation: Any) -> str:  # noqa: ANN401
    """Return the name of an operation of ATen."""
    return str(operation._overloadpacket).rpartition(".")[2]  # noqa: SLF001 # no public name


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


# Operations of ATen by name, without the underscore of in-place variants.
MOVING = _names(
    "permute transpose t squeeze unsqueeze expand slice select split split_with_sizes unbind cat",
    "stack repeat roll flip rot90 unfold im2col index_select narrow diagonal",
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d",
    "replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
)
CREATING = _names(
    "zeros_like ones_like empty_like full_like rand_like randn_like",
    "new_zeros new_ones new_empty new_full",
)
SIZED = _names("split split_with_sizes slice")  # by numbers that the code may take from attributes
RESHAPING = _names("view _unsafe_view reshape _reshape_alias")
ELEMENTWISE = _names(
    "hardswish _prelu_kernel prelu native_dropout dropout where masked_fill _to_copy copy detach",
    "alias clone lift_fresh contiguous nan_to_num celu selu rrelu",
)
ALONG_DIMENSIONS = _names(
    "mean sum amax amin max min var std var_mean std_mean prod logsumexp _softmax _log_softmax",
    "linalg_vector_norm norm cumsum argmax argmin any all",
)


def _split_sizes(arguments: Mapping[str, Any], _: int) -> tuple[int, int, int]:
    sizes = {int(size) for size in arguments["split_sizes"]}
    return 0, sizes.pop() if len(sizes) == 1 else 0, 1


def _sliced(arguments: Mapping[str, Any], size: int) -> tuple[int, int, int]:
    start, stop, stride = slice(*(arguments[key] for key in ("start", "end", "step"))).indices(size)
    return (start, stop - start, 1) if stride == 1 else (0, size // stride, stride)


# Operations that take parts of a dimension: arguments and its size → where a part starts, its
# length (0 if parts differ), and the distance of its elements.
PARTS: dict[str, Callable[[Mapping[str, Any], int], tuple[int, int, int]]] = {
    "split": lambda arguments, _: (0, int(arguments["split_size"]), 1),
    "split_with_sizes": _split_sizes,
    "unbind": lambda *_: (0, 1, 1),
    "select": lambda *_: (0, 0, 1),
    "index_select": lambda *_: (0, 0, 1),
    "slice": _sliced,
    "channel_shuffle": lambda arguments, size: (0, size // int(arguments["groups"]), 1),
    "native_channel_shuffle": lambda arguments, size: (0, size // int(arguments["groups"]), 1),
    "pixel_shuffle": lambda a, size: (0, size // int(a["upscale_factor"]) ** 2, 2),
}
SHUFFLED_DIMENSION = {"pixel_shuffle": -3, "channel_shuffle": 1, "native_channel_shuffle": 1}
ATTENTION = "scaled_dot_product"  # in the names of all fused kernels
SPATIAL = ("avg_pool", "max_pool", "upsample_", "lp_pool")
