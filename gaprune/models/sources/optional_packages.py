"""Optional packages, imported when they are needed."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from typing import Any

import torch

from gaprune.errors import GapruneError

_USE_TORCHVISION = ("timm", "transformers")
# Registering what torchvision does without tensors fails for operators of its compiled part that
# are not there, and with it the whole import. One signature fits all that have shown up.
_MISSING_OPERATOR = re.compile(r"operator (torchvision::\w+) does not exist")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_extra(package: str, extra: str, what: str) -> Any:  # noqa: ANN401 - a module
    """Import an optional package.

    Args:
        package: its name.
        extra: the extra of gaprune that installs it.
        what: what needs it; the error message begins with it.

    Raises:
        GapruneError: it is not installed, or cannot be imported.
    """
    try:
        if find_spec(package.partition(".")[0]) is None:
            raise GapruneError(f"{what}: needs {package}; pip install 'gaprune[{extra}]'")
        if package in _USE_TORCHVISION:
            mend_torchvision()
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # a package whose compiled part does not fit torch
        raise GapruneError(
            f"{what}: {package} is installed but cannot be imported ({error}); "
            f"pip install --force-reinstall 'gaprune[{extra}]', with the builds of torch and "
            "torchvision that belong to each other"
        ) from error


def mend_torchvision() -> None:
    """Let torchvision be imported where its compiled part does not fit this torch.

    That is so for the usual wheel of torchvision beside a torch without CUDA. timm and transformers
    import it, but call none of its compiled operators for the networks that gaprune loads; those
    stay without an implementation, and raise where they are called.

    Raises:
        RuntimeError: torchvision fails for another reason.
    """
    if find_spec("torchvision") is None:
        return
    declared: set[str] = set()
    while True:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = _MISSING_OPERATOR.search(str(error))
            if missing is None or missing[1] in declared:
                raise
            torch.library.define(missing[1], _SIGNATURE)
            declared.add(missing[1])
        else:
            return
