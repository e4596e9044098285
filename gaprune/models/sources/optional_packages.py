"""Import optional packages when they are needed."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from typing import Any

import torch

from gaprune.errors import GapruneError

_USE_TORCHVISION = ("timm", "transformers")
_MISSING_OPERATOR = re.compile(r"operator (torchvision::\w+) does not exist")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_extra(package: str, extra: str, what: str) -> Any:
    """Import an optional package, which `extra` of gaprune installs.

    Raises:
        GapruneError: it is not installed, or cannot be imported. The message begins with `what`.
    """
    try:
        if find_spec(package.partition(".")[0]) is None:
            project = package.replace("_", "-")  # as pip spells it
            raise GapruneError(f"{what}: needs {project}; pip install 'gaprune[{extra}]'")
        if package in _USE_TORCHVISION:
            mend_torchvision()
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # a compiled part does not fit torch
        raise GapruneError(
            f"{what}: {package} is installed but cannot be imported ({error}); "
            f"pip install --force-reinstall 'gaprune[{extra}]', with matching builds of torch and "
            "torchvision"
        ) from error


def mend_torchvision() -> None:
    """Make torchvision importable even if its compiled part does not fit this torch.

    This is so for the usual torchvision wheel beside a torch without CUDA: registering fake kernels
    for missing compiled operators fails, and with it the import. timm and transformers import
    torchvision but call none of these operators for the networks that gaprune loads. So the
    operators are declared without an implementation; calling one raises.
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
            # one signature has been enough for all operators seen so far
            torch.library.define(missing[1], _SIGNATURE)
            declared.add(missing[1])
        else:
            return
