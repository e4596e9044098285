"""Check stored inputs and labels against what the network takes, and bring them into its range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.calibration.generators.draws import normalise, to_network
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec

SLACK = 1e-3  # rounding in a stored file is no reason to refuse it


def fit_inputs(stored: Tensor, spec: InputSpec, source: str) -> Tensor:
    """Return stored inputs as the network takes them: `[N, *spec.shape]`, normalised.

    uint8 is scaled by 1/255 to the unit range and mapped to [low, high]; other numbers must already
    be raw values in [low, high]; then mean and std are applied. Token ids become int64.

    Raises:
        InputError: no sample, a dtype that holds no real numbers, a shape that doesn't fit, NaN or
            Inf, values outside the stated range, ids outside the vocabulary.
    """
    if stored.dtype == torch.bool or stored.is_complex():
        raise InputError(f"calibration inputs: {source} must hold real numbers, got {stored.dtype}")
    if stored.dim() == 0:
        raise InputError(
            f"calibration inputs: {source} must hold an array of samples, got a single number"
        )
    if stored.numel() == 0:
        raise InputError(f"calibration inputs: {source} is empty (shape {tuple(stored.shape)})")
    shaped = _fit_shape(stored, spec, source)
    if spec.kind == "tokens":
        return _check_ids(shaped, spec, source)
    if shaped.dtype == torch.uint8:
        return to_network(spec, shaped.float() / 255)
    raw = shaped.float()
    _check_values(raw, spec, source)
    return normalise(spec, raw)


def fit_labels(labels: Tensor, count: int, source: str) -> Tensor:
    """Return labels as int64 `[count]`.

    Raises:
        InputError: not one non-negative whole number per input.
    """
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels: {source} must hold whole numbers, got {labels.dtype}")
    if labels.shape != (count,):
        raise InputError(
            f"labels: {source} must hold one class per input, shape ({count},), "
            f"got {tuple(labels.shape)}"
        )
    whole = labels.long()
    if whole.min() < 0:
        raise InputError(f"labels: {source} must be 0 or above, got {int(whole.min())}")
    return whole


def _fit_shape(stored: Tensor, spec: InputSpec, source: str) -> Tensor:
    """Accept the network's own shape, channels last, no channel axis, or flattened samples."""
    wanted = spec.shape
    came = tuple(stored.shape[1:])
    is_picture = spec.kind == "image" and len(wanted) == 3
    if came == wanted:
        return stored
    if is_picture and came == (*wanted[1:], wanted[0]):
        return stored.movedim(-1, 1).contiguous()
    if wanted[0] == 1 and came == wanted[1:]:
        return stored.unsqueeze(1)
    if came == (math.prod(wanted),):
        return stored.reshape(-1, *wanted)
    forms = [wanted, (math.prod(wanted),)] + ([(*wanted[1:], wanted[0])] if is_picture else [])
    accepted = " or ".join(str(("N", *form)).replace("'", "") for form in dict.fromkeys(forms))
    raise InputError(
        f"calibration inputs: {source} must have shape {accepted}, got {tuple(stored.shape)}; "
        "the first axis counts the samples"
    )


def _check_ids(ids: Tensor, spec: InputSpec, source: str) -> Tensor:
    if ids.is_floating_point():
        raise InputError(f"calibration inputs: {source} must hold whole token ids, got {ids.dtype}")
    whole = ids.long()
    low, high = int(whole.min()), int(whole.max())
    if low < 0 or high >= spec.vocabulary:
        raise InputError(
            f"calibration inputs: {source} must hold token ids from 0 to {spec.vocabulary - 1}, "
            f"got {low} to {high}"
        )
    return whole


def _check_values(raw: Tensor, spec: InputSpec, source: str) -> None:
    broken = int((~raw.isfinite()).sum())
    if broken:
        raise InputError(
            f"calibration inputs: {source} must be finite, got {broken} values of NaN or Inf"
        )
    low, high = raw.min().item(), raw.max().item()
    if low < spec.low - SLACK or high > spec.high + SLACK:
        whose = "assumed" if spec.assumed else "stated"
        raise InputError(
            f"calibration inputs: {source} must hold raw values in the {whose} range {spec.low:g} to "
            f"{spec.high:g}, before mean and std are applied, got {low:g} to {high:g}; state the "
            "range of the values, or store pixels as uint8 (0 to 255)"
        )
