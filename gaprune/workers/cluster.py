"""Which Ray is used, and whether it has what the workers need."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from math import floor
from typing import Any

import ray

from gaprune.errors import GapruneError, InputError
from gaprune.io.user_code import PREFIX
from gaprune.workers.protocol import OWN, WorkerOptions

CLIENT = "ray://"
ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray's own: what `auto` means
AUTH_VARIABLE = "RAY_AUTH_TOKEN"  # Ray's own: without it Ray reads or makes ~/.ray/auth_token
ANSWER = 5.0  # seconds that a cluster has to accept a connection
_WAY_OUT = "start one with 'ray start --head', correct --ray-address, or leave it out"


def connect(worker_options: WorkerOptions) -> bool:
    """Use the Ray that runs here, join the cluster at the address, or start one on this machine.

    Returns:
        Whether it is ours to leave, or to stop, at the end.

    Raises:
        GapruneError: no cluster answers there.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice on CPUs
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}},
    }
    if worker_options.address == OWN:
        cpus = max(worker_options.count * worker_options.threads, os.cpu_count() or 1)
        with _own_sigterm():
            _start(num_cpus=cpus, include_dashboard=False, **options)
        return True
    check_address(worker_options.address)
    if worker_options.address.startswith(CLIENT):
        _show_token()
    try:
        with _own_sigterm():
            ray.init(address=worker_options.address, **options)
    except Exception as error:  # its kinds differ between versions and ways to connect
        raise _no_cluster(worker_options.address, f"{type(error).__name__}: {error}") from error
    return True


def _show_token() -> None:
    """Let Ray's client show a token that is here, as `ray.init` does on every other way.

    By itself it shows none (Ray 2.60), and a cluster that asks for one does not answer it. One that
    asks for none takes no notice.
    """
    with contextlib.suppress(ImportError):  # another version may have it elsewhere, or not need it
        setup = import_module("ray._private.authentication.authentication_token_setup")
        setup.logger.setLevel(logging.ERROR)  # it would announce the token
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _start(**options: Any) -> None:
    """Start a Ray on this machine, also where its token cannot be kept in the home folder."""
    try:
        ray.init(address="local", **options)
    except OSError:
        if AUTH_VARIABLE in os.environ:
            raise
        os.environ[AUTH_VARIABLE] = secrets.token_hex(32)
        ray.init(address="local", **options)


def check_resources(worker_options: WorkerOptions) -> None:
    """Compare what the workers need with what the cluster has, free or not.

    Raises:
        InputError: fewer workers fit; the message says how many.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = capacity(nodes, worker_options.threads, worker_options.gpus)
    if fit >= worker_options.count:
        return
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    has = f"the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} node(s)"
    if worker_options.gpus and not capacity(nodes, 0, worker_options.gpus):
        raise InputError(
            f"gpus_per_worker: {worker_options.gpus:g} asked for each of {worker_options.count} worker(s), but "
            f"{has}; leave --gpus-per-worker out, or name a cluster with GPUs by --ray-address"
        )
    if not fit:
        raise InputError(
            f"threads_per_worker: {worker_options.threads} asked, a CPU for each, but {has}; use "
            "fewer --threads-per-worker"
        )
    raise InputError(
        f"workers: {worker_options.count} asked, each with {worker_options.threads} CPU(s) and {worker_options.gpus:g} "
        f"GPU(s), but {has}; use --workers {fit}"
    )


def capacity(nodes: Sequence[Mapping[str, float]], threads: int, gpus: float) -> int:
    """Return how many workers fit on nodes, each of which has so many CPUs and GPUs.

    Less than one GPU is a share of a single one: 0.4 fits twice on each.
    """
    return sum(
        min(
            floor(node.get("CPU", 0) / threads) if threads else sys.maxsize,
            _on_gpus(node.get("GPU", 0), gpus) if gpus else sys.maxsize,
        )
        for node in nodes
    )


def _on_gpus(there: float, each: float) -> int:
    slack = 1e-9  # 0.1 fits ten times
    return floor(there) * floor(1 / each + slack) if each < 1 else floor(there / each + slack)


def free() -> str:
    """Return what the cluster has free now, in words."""
    there = ray.available_resources()
    return f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"


def has_room(worker_options: WorkerOptions) -> bool:
    """Tell whether as much is free as one more worker needs."""
    there = ray.available_resources()
    return bool(
        there.get("CPU", 0) >= worker_options.threads and there.get("GPU", 0) >= worker_options.gpus
    )


def is_gone(node: str) -> bool:
    """Tell whether the cluster has noticed that a node is lost; that takes it some 17 s."""
    return not any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


def send_user_code_by_value() -> None:
    """Classes from a user's factory file have no module to import elsewhere: send their code."""
    for name, module in list(sys.modules.items()):
        if name.startswith(PREFIX):
            ray.cloudpickle.register_pickle_by_value(module)


def check_address(address: str) -> None:
    """Refuse at once what would keep Ray waiting.

    Raises:
        GapruneError: nobody listens there, or Ray's client is not installed.
    """
    if address.startswith(CLIENT) and find_spec("grpc") is None:
        raise InputError(f"ray_address: {CLIENT} needs Ray's client; pip install 'ray[client]'")
    if address == "auto":
        address = os.environ.get(ADDRESS_VARIABLE, "")
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> GapruneError:
    lines = why.strip().splitlines()
    token = ""
    if address.startswith(CLIENT):
        token = f" (and set {AUTH_VARIABLE} to the cluster's token, if it asks for one)"
    return GapruneError(
        f"ray_address: no Ray cluster answers at {address!r} ({lines[0]}); {_WAY_OUT}{token}"
    )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put the caller's SIGTERM handler back: `ray.init` sets one that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
