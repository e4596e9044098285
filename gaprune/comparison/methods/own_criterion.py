"""A criterion of the user's own, from a file."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gaprune.criteria import Criterion, DenseNetwork
from gaprune.io.user_code import call_user, load_function
from gaprune.models.target import private_copy


def own_criterion(spec: str) -> Criterion:
    """Return a criterion of the user's own; it stays outside `CRITERIA`, which seed the search.

    Args:
        spec: `path/to/file.py:function`; the function takes a `gaprune.models.network.DenseNetwork`, calibration inputs
            `[N, …]`, a density and a generator, and returns one score per prunable weight,
            higher means keep.

    Raises:
        InputError: no such function.
    """
    function = load_function(spec, "methods")

    def criterion(
        network: DenseNetwork,
        calibration: Tensor | None,
        density: float | None,
        generator: torch.Generator,
    ) -> Tensor:
        model = private_copy(network.model, next(iter(network.weights.values())).device)
        weights = {name: model.get_parameter(name).detach() for name in network.weights}
        own = replace(network, model=model, weights=weights)  # other methods need theirs as it is
        shown = None if calibration is None else calibration.clone()
        scores: Tensor = call_user(
            function, own, shown, density, generator, where=f"methods: {spec}"
        )
        return scores

    return Criterion(
        spec,
        criterion,
        needs_inputs=True,
        takes_gradients=False,
        source=spec,
        description="a criterion of your own",
    )
