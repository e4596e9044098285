"""Follow channels through a forward pass: which layers compute, join and read them.

Every element of an activation carries a label that says which output channel computed it.
Operations that only move elements (chunk, concatenate, shuffle, …) are applied to the labels
themselves, so index maps are exact; operations on several elements join their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from gaprune.models.channel_labels import CONSTANT, ChannelLabels, stripped, varies
from gaprune.models.channel_layers import (
    MIXING,
    channel_axis,
    is_traced_layer,
    num_groups,
    passing_through,
    refusal,
)
from gaprune.models.channel_numbers import ChannelNumbers
from gaprune.models.channel_operations import (
    ALONG_DIMENSIONS,
    ATTENTION,
    CREATING,
    ELEMENTWISE,
    MOVING,
    PARTS,
    RESHAPING,
    SHUFFLED_DIMENSION,
    SIZED,
    SPATIAL,
    Call,
    name_of,
)
from gaprune.models.channel_slicing import num_inputs, num_outputs, vector_axis


class ChannelTracer(TorchDispatchMode):
    """Labels of a forward pass.

    Attributes:
        labels: the sets of coupled channels.
        outputs: layer → label of each output channel; also norms and depthwise convolutions.
        inputs: layer → label of each input channel that it reads.
        attributes: name → label of each element of a module's vector, such as that of LayerScale,
            or of each channel that a module's number counts, such as the width of Res2Net's parts.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        free_factors: Mapping[str, int] | None = None,
        with_numbers: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = ChannelLabels()
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.attributes: dict[str, Tensor] = {}
        self.factored: dict[str, set[int]] = {}  # site of a reshape that splits channels → labels
        self.num_factors: dict[str, int] = {}  # the same site → into how many dimensions
        self._free_factors = free_factors or {}
        self._first_channel = 1  # labels below are those of vectors
        self._of: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._hidden = 0  # depth of layers whose operations are not looked at
        self._path: list[str] = []
        self._sites: dict[str, int] = {}
        self._model = model
        self._counts = ChannelNumbers(
            model, self.labels, self.attributes, self._path, used=with_numbers
        )
        self._owners = {
            id(parameter): name
            for name, module in model.named_modules()
            if is_traced_layer(module)
            for parameter in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        }
        self._misused: dict[str, str] = {}

    @property
    def numbers(self) -> set[str]:
        """Names of the attributes that are numbers."""
        return self._counts.names

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled, and with True torch would import its compiler."""
        return False

    @torch.no_grad()
    def run(self, example: Tensor) -> None:
        """Run the network on one input `[1, …]`."""
        self._label_vectors()
        source = self.labels.fixed("they are added to the network's inputs")
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                before = module.register_forward_pre_hook(self._entering(name), with_kwargs=True)
                after = module.register_forward_hook(self._leaving(name))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            self._of[example] = torch.tensor(source).expand(example.shape)
            with self:
                output = self._model(example)
        for tensor in tree_iter(output):
            self._fix(tensor, "they are the network's outputs")
        for layer, reason in self._misused.items():
            for labels in (self.outputs.get(layer), self.inputs.get(layer)):
                self.labels.fix_all(labels, reason)

    def _label_vectors(self) -> None:
        """Give labels to the elements of vectors that no layer holds: they may scale channels."""
        for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
            axis = vector_axis(tensor)
            if axis < 0 or id(tensor) in self._owners or not tensor.is_floating_point():
                continue
            self.attributes[name] = self.labels.new(tensor.shape[axis])
            self._of[tensor] = self.attributes[name].view(tensor.shape)
            self._first_channel = int(self.attributes[name][-1]) + 1

    def _entering(self, name: str) -> Any:  # noqa: ANN401 - torch's type of a hook
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._path.append(name)
            if self._hidden or is_traced_layer(module):
                self._hidden += 1
            if self._hidden != 1:
                return
            tensors = [value for value in tree_iter((args, named)) if isinstance(value, Tensor)]
            if isinstance(module, MIXING):
                for tensor in tensors:
                    self._fix(tensor, passing_through(module))
            elif tensors:
                self._enter_layer(name, module, tensors[0])

        return hook

    def _leaving(self, name: str) -> Any:  # noqa: ANN401
        def hook(module: nn.Module, _: object, output: Any) -> None:  # noqa: ANN401
            self._path.pop()
            self._hidden = max(0, self._hidden - 1)
            if self._hidden or not is_traced_layer(module):
                return
            if isinstance(module, MIXING) or name not in self.outputs:
                self._set_fixed(output, passing_through(module))
                return
            axis = channel_axis(module, output)
            shape = [-1 if index == axis else 1 for index in range(output.ndim)]
            self._of[output] = self.outputs[name].view(shape).expand(output.shape)

        return hook

    def _enter_layer(self, name: str, module: nn.Module, inputs: Tensor) -> None:
        read = self._read(inputs, channel_axis(module, inputs), name)
        if name not in self.outputs:
            self.outputs[name] = self.labels.new(num_outputs(module))
        made = self.outputs[name]
        groups = num_groups(module)
        reason = refusal(module, len(read))
        if reason is not None:
            self.labels.fix_all(read, reason)
            self.labels.fix_all(made, reason)
            if groups > 1:
                return
            read = torch.zeros(num_inputs(module), dtype=torch.int64)
        elif groups > 1:  # whole groups can be removed
            what = f"{type(module).__name__} {name}"
            parts = read.view(groups, -1), made.view(groups, -1)
            for part in parts:
                self.labels.join_along(part, 1, what)
            self.labels.join_all(parts[0][:, :1], parts[1][:, :1], what)
            return
        self.labels.join_all(self.inputs.setdefault(name, read), read, f"the second call of {name}")

    def _read(self, inputs: Tensor, axis: int, layer: str) -> Tensor:
        """Return the label of each input channel, whose elements must all have the same."""
        labels = self._of.get(inputs)
        if labels is None:
            return torch.zeros(inputs.shape[axis], dtype=torch.int64)
        matrix = self.labels.roots(stripped(labels, but=axis)).movedim(axis, 0).flatten(1)
        low, high = matrix.amin(1), matrix.amax(1)
        mixed = matrix[low != high]
        self.labels.fix_all(mixed, f"they are rearranged in front of {layer!r}")
        return high

    def __torch_dispatch__(
        self,
        operation: Any,  # noqa: ANN401 - torch's own types of operations are private
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named = kwargs or {}
        output = operation(*args, **named)
        if self._hidden:
            return output
        tensors = [value for value in tree_iter((args, named)) if isinstance(value, Tensor)]
        for tensor in tensors:
            if (layer := self._owners.get(id(tensor))) is not None:
                self._misused.setdefault(layer, f"its weights are used outside of {layer!r}")
        if any(tensor in self._of for tensor in tensors):
            call = Call(operation, args, named, tensors, output, self._site(operation))
            try:
                self._follow(call)
            except Exception:  # noqa: BLE001 - whatever labels do not survive mixes channels
                reason = f"they pass through {call.site}"
                labels = [self._of[tensor] for tensor in tensors if tensor in self._of]
                for of in labels:
                    self.labels.fix_all(of, reason)
                if any(int(of.max()) >= self._first_channel for of in labels):
                    self._set_fixed(output, reason)  # else a constant, made of vectors
        return output

    def _site(self, operation: Any) -> str:  # noqa: ANN401
        where = self._path[-1] if self._path else ""
        return f"{name_of(operation).strip('_')} in {where or 'the network'!r}"

    def _follow(self, call: Call) -> None:
        output = call.output
        is_part = isinstance(output, Tensor) and output.untyped_storage().nbytes() > output.nbytes
        if call.is_in_place and is_part:
            if output not in self._of:  # the labels of the whole would have to change, too
                raise NotImplementedError(call.name)
            if call.name == "copy":
                self._fill(call)
                return
        rule_of(call)(self, call)

    def _fill(self, call: Call) -> None:
        """Join the labels of a part with those of what is copied into it."""
        places, copied = self._of[call.output], self._labels_of(call.args[1])
        self.labels.join_all(places, torch.where(copied == CONSTANT, places, copied), call.site)

    def create(self, call: Call) -> None:
        """Give a new tensor the labels of the one that it is like; the trial of groups decides."""
        labels = self.labels.like(self._of[call.args[0]], call.output.shape)
        if labels is not None:
            self._of[call.output] = labels

    def reshape(self, call: Call) -> None:
        """Follow elements into another shape."""
        self._of[call.output] = self._reshaped(
            self._of[call.tensors[0]], call.output.shape, call.site
        )

    def move(self, call: Call) -> None:
        """Follow elements to other places, by moving their labels."""
        labels = self._of.get(call.args[0]) if isinstance(call.args[0], Tensor) else None
        if labels is not None and call.name in PARTS:
            self._couple_parts(call.name, labels, call.arguments, call.site)
        # float64, since some of these exist for floating-point numbers only
        args, named = tree_map(self._as_floats, (call.args, call.named))
        moved = call.operation(*args, **named)
        for tensor, labels in zip(tree_iter(call.output), tree_iter(moved), strict=True):
            self._of[tensor] = labels.long()

    def pad(self, call: Call) -> None:
        """Follow padding with a number."""
        self._of[call.output] = self.labels.pad(self._of[call.args[0]], call.args[1])

    def normalise(self, call: Call) -> None:
        """Join channels with the elements of the vectors that scale and shift them."""
        tensor, *vectors = (value for value in call.args[:5] if isinstance(value, Tensor))
        labels = self._of[tensor]
        for vector in vectors:
            of = self._labels_of(vector).view(-1, *[1] * (labels.ndim - 2))
            self.labels.join_all(labels, of, call.site)
        self._of[next(iter(tree_iter(call.output)))] = labels

    def restride(self, call: Call) -> None:
        """Follow another order in memory, as of global pooling in channels-last order."""
        labels = self._of[call.tensors[0]]
        if call.output.shape != labels.shape:
            raise NotImplementedError(call.name)
        self._of[call.output] = labels

    def gate(self, call: Call) -> None:
        """Join the halves of a gated linear unit."""
        first, second = self._of[call.args[0]].chunk(2, *(call.args[1:2] or (-1,)))
        self.labels.join_all(first, second, call.site, in_layer=True)
        self._of[call.output] = first

    def _as_floats(self, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor):
            return value
        labels = self._of.get(value)
        if labels is not None:
            return labels.double()
        if value.is_floating_point():  # a constant that is concatenated
            return torch.zeros((), dtype=torch.float64).expand(value.shape)
        return value.cpu()  # indices

    def _couple_parts(
        self, name: str, labels: Tensor, arguments: Mapping[str, Any], what: str
    ) -> None:
        """Join channels at the same position of equal parts: then each part loses the same."""
        dim = int(arguments.get("dim", SHUFFLED_DIMENSION.get(name, 0))) % labels.ndim
        size = labels.shape[dim]
        start, length, stride = PARTS[name](arguments, size)
        if length == size or not varies(self.labels.roots(stripped(labels, but=dim)), dim):
            return
        if name == "split_with_sizes" and self._counts.count_list(
            labels, arguments["split_sizes"], dim
        ):
            return
        if length > 0 and size % length == 0 and start % length == 0:
            # parts are adjacent (stride 1) or interleaved
            shape = (size // length, length) if stride == 1 else (length, size // length)
            parts = labels.unflatten(dim, shape)
            self.labels.join_along(parts, dim if stride == 1 else dim + 1, what)
            if name in SIZED and not self._counts.count(
                length, labels.narrow(dim, start, length), dim
            ):
                self._counts.count(size, labels, dim)  # the code divides it
        elif not self._counts.count_unequal(name, labels, arguments, dim):
            self.labels.fix_all(labels, f"they are split into unequal parts by {what}")

    def _reshaped(self, labels: Tensor, shape: torch.Size, what: str) -> Tensor:
        """Return reshaped labels; where channels are split into factors, all but one are fixed."""
        result = labels.reshape(shape)
        before = [dim for dim in range(labels.ndim) if varies(labels, dim)]
        after = [dim for dim in range(result.ndim) if varies(result, dim)]
        free = after
        if len(after) > max(1, len(before)):
            self._sites[what] = self._sites.get(what, 0) + 1
            site = f"{what} {self._sites[what]}"
            self.factored[site] = set(torch.unique(labels).tolist())
            self.num_factors[site] = len(after)
            # usually the outer factors are constants of `forward` (groups, branches)
            free = [after[self._free_factors.get(site, -1)]]
            for dim in after:
                if dim not in free:
                    self.labels.join_along(result, dim, what)
        if labels.shape != shape:
            for dim in free:
                self._counts.count(result.shape[dim], result, dim)
        return result

    def combine(self, call: Call) -> None:
        """Join the labels that an operation by element combines."""
        output = call.output
        first = output if isinstance(output, Tensor) else next(iter(tree_iter(output)))
        shape = first.shape
        known = self._joined_labels(call.tensors, shape, call.site)
        result = known[0]
        for labels in known[1:]:
            self.labels.join_all(result, labels, call.site)
            result = torch.maximum(*torch.broadcast_tensors(stripped(result), stripped(labels)))
            result = result.expand(shape)
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor):
                self._of[tensor] = result.expand(tensor.shape)

    def _joined_labels(
        self, tensors: Sequence[Tensor], shape: torch.Size, what: str
    ) -> list[Tensor]:
        """Return the labels that are joined, and fix those that meet constants, or all others."""
        labels = {id(t): self._of[t].expand(shape) for t in tensors if t in self._of}
        # a vector matters only where it meets channels
        channels = {key: of for key, of in labels.items() if int(of.max()) >= self._first_channel}
        channels = channels or labels
        dims = range(len(shape))
        among = {dim for of in channels.values() for dim in dims if self.labels.vary(of, dim)}
        known = []
        for tensor in tensors:
            key, met = id(tensor), _wide(tensor, len(shape)) & among
            if key in labels and (met or (key in channels and not among)):
                known.append(labels[key])
            elif key in channels:
                self.labels.fix_all(labels[key], f"they are combined with all channels in {what}")
            elif key not in labels:
                for of in channels.values():
                    if any(self.labels.vary(of, dim) for dim in met):
                        self.labels.fix_all(of, f"they meet a parameter or constant in {what}")
        return known

    def multiply(self, call: Call) -> None:
        """Follow a product of matrices."""
        left, right = map(self._labels_of, call.args[:2])
        self._of[call.output] = self.labels.multiply(left, right, call.site)

    def attend(self, call: Call) -> None:
        """Follow a fused attention of queries, keys and values."""
        queries, *others = map(self._labels_of, call.args[:3])
        shared = (
            queries.shape[1] // others[0].shape[1]
        )  # queries of several heads use the same keys
        keys, values = (labels.repeat_interleave(shared, 1) for labels in others)
        weights = self.labels.multiply(queries, keys.transpose(-2, -1), call.site)
        self._of[call.output[0]] = self.labels.multiply(weights, values, call.site)

    def _labels_of(self, tensor: Tensor) -> Tensor:
        labels = self._of.get(tensor)
        return torch.tensor(CONSTANT).expand(tensor.shape) if labels is None else labels

    def reduce(self, call: Call) -> None:
        """Follow sums, norms and the like along dimensions."""
        tensor = call.tensors[0]
        labels, dims = self._of[tensor], call.arguments.get("dim")
        if dims is None or dims == []:
            dims = range(labels.ndim)
        dims = [dims] if isinstance(dims, int) else list(dims)
        labels = self._joined_along(labels, dims, call.site)
        for result in tree_iter(call.output):
            same = result.shape == tensor.shape
            self._of[result] = labels.expand(tensor.shape) if same else labels.reshape(result.shape)

    def reduce_space(self, call: Call) -> None:
        """Follow pooling and resizing, which combine places and no channels."""
        tensor = call.tensors[0]
        rank = next((n for n in (1, 2, 3) if f"{n}d" in call.name), tensor.ndim - 2)
        labels = self._joined_along(self._of[tensor], range(-rank, 0), call.site)
        for result in tree_iter(call.output):
            self._of[result] = labels.expand(result.shape)

    def _joined_along(self, labels: Tensor, dims: Iterable[int], what: str) -> Tensor:
        """Join labels along dimensions, and return them with one element there."""
        for dim in dims:
            if varies(labels, dim):
                self.labels.join_along(labels, dim, what)
            labels = labels.narrow(dim, 0, 1) if labels.ndim else labels
        return labels

    def _fix(self, tensor: Any, reason: str) -> None:  # noqa: ANN401
        if isinstance(tensor, Tensor):
            self.labels.fix_all(self._of.get(tensor), reason)

    def _set_fixed(self, output: Any, reason: str) -> None:  # noqa: ANN401
        label = torch.tensor(self.labels.fixed(reason))
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor):
                self._of[tensor] = label.expand(tensor.shape)


def _wide(tensor: Tensor, ndim: int) -> set[int]:
    """Return the dimensions of a result of `ndim` dimensions that a tensor does not broadcast."""
    return {ndim - tensor.ndim + dim for dim, size in enumerate(tensor.shape) if size > 1}


_RULES: dict[str, Callable[[ChannelTracer, Call], None]] = {
    **dict.fromkeys(RESHAPING, ChannelTracer.reshape),
    **dict.fromkeys(MOVING, ChannelTracer.move),
    **dict.fromkeys(ELEMENTWISE, ChannelTracer.combine),
    **dict.fromkeys(ALONG_DIMENSIONS, ChannelTracer.reduce),
    "as_strided": ChannelTracer.restride,
    "constant_pad_nd": ChannelTracer.pad,
    "glu": ChannelTracer.gate,
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm"), ChannelTracer.normalise),
    **dict.fromkeys(CREATING, ChannelTracer.create),
    **dict.fromkeys(("mm", "bmm"), ChannelTracer.multiply),
}
_PARTS_OF_NAMES: dict[str, Callable[[ChannelTracer, Call], None]] = {
    ATTENTION: ChannelTracer.attend,
    **dict.fromkeys(SPATIAL, ChannelTracer.reduce_space),
}


def rule_of(call: Call) -> Callable[[ChannelTracer, Call], None]:
    """Return how labels follow an operation.

    Raises:
        NotImplementedError: no rule is known.
    """
    if call.name in _RULES:
        return _RULES[call.name]
    if torch.Tag.pointwise in call.operation.tags:
        return ChannelTracer.combine
    for part, rule in _PARTS_OF_NAMES.items():
        if part in call.name:
            return rule
    raise NotImplementedError(call.name)
