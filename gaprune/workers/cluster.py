"""Which Ray is used, and whether its nodes have what the workers need."""

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
from importlib import import_module
from importlib.util import find_spec
from math import floor
from typing import Any

import ray

from gaprune.errors import GapruneError, InputError
from gaprune.io.user_code import PREFIX
from gaprune.workers.base import LOCAL_RAY, WorkerOptions

CLIENT = "ray://"
ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray's own: what `auto` means
AUTH_VARIABLE = "RAY_AUTH_TOKEN"  # Ray's own: without it Ray reads or makes ~/.ray/auth_token
CONNECT_TIMEOUT = 5.0  # seconds


def connect(worker_options: WorkerOptions) -> bool:
    """Use the initialised Ray, join the cluster at the address, or start Ray on this machine.

    Returns:
        Whether the caller must shut it down at the end.

    Raises:
        GapruneError: no cluster answers at the address.
    """
    if ray.is_initialized():
        return False
    address = worker_options.address
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice on CPUs
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}},
    }
    if address == LOCAL_RAY:
        cpus = max(worker_options.count * worker_options.threads, os.cpu_count() or 1)
        with _keep_sigterm_handler():
            _start_local(num_cpus=cpus, include_dashboard=False, **options)
        return True
    check_address(address)
    if address.startswith(CLIENT):
        _enable_client_token()
    try:
        with _keep_sigterm_handler():
            ray.init(address=address, **options)
    except Exception as error:  # its type differs between versions and ways to connect
        raise _no_cluster(address, f"{type(error).__name__}: {error}") from error
    return True


def _start_local(**options: Any) -> None:
    """Start Ray here, also where its token cannot be written into the home folder."""
    try:
        ray.init(address="local", **options)
    except OSError:
        if AUTH_VARIABLE in os.environ:
            raise
        os.environ[AUTH_VARIABLE] = secrets.token_hex(32)
        ray.init(address="local", **options)


def _enable_client_token() -> None:
    """Make Ray's client send its token, as `ray.init` does on every other way to connect.

    By itself the client sends none (Ray 2.60), and a cluster that requires one does not answer.
    """
    with contextlib.suppress(ImportError):  # private: other versions may lack it, or not need it
        setup = import_module("ray._private.authentication.authentication_token_setup")
        setup.logger.setLevel(logging.ERROR)  # it would log where the token is
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def check_address(address: str) -> None:
    """Check in seconds what would let Ray wait for minutes.

    Raises:
        InputError: Ray's client is not installed.
        GapruneError: nothing listens at the address.
    """
    if address.startswith(CLIENT) and find_spec("grpc") is None:
        raise InputError(f"ray_address: {CLIENT} needs Ray's client; pip install 'ray[client]'")
    if address == "auto":
        address = os.environ.get(ADDRESS_VARIABLE, "")
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> GapruneError:
    token = ""
    if address.startswith(CLIENT):
        token = f" (and set {AUTH_VARIABLE} to the token of the cluster, if it requires one)"
    return GapruneError(
        f"ray_address: no Ray cluster answers at {address!r} ({why.strip().splitlines()[0]}); "
        f"start one with 'ray start --head', correct --ray-address, or leave it out{token}"
    )


@contextlib.contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore the SIGTERM handler: `ray.init` sets one that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_resources(worker_options: WorkerOptions) -> None:
    """Compare what the workers reserve with what the cluster has in all, free or not.

    Ray itself would wait for ever for a GPU that no node has.

    Raises:
        InputError: not all workers fit; the message says how many do.
    """
    count, threads, gpus = worker_options.count, worker_options.threads, worker_options.gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = capacity(nodes, threads, gpus)
    if fit >= count:
        return
    totals = [sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")]
    has = f"the Ray cluster has {totals[0]:g} CPUs and {totals[1]:g} GPUs on {len(nodes)} node(s)"
    setting, remedy = "workers", f"use --workers {fit}"
    if gpus and not capacity(nodes, 0, gpus):
        setting = "gpus_per_worker"
        remedy = "leave --gpus-per-worker out, or name a cluster with GPUs by --ray-address"
    elif not fit:
        setting, remedy = "threads_per_worker", "use fewer --threads-per-worker"
    raise InputError(
        f"{setting}: {count} worker(s) with {threads} CPU(s) and {gpus:g} GPU(s) each asked, "
        f"but {has}; {remedy}"
    )


def capacity(nodes: Sequence[Mapping[str, float]], threads: int, gpus: float) -> int:
    """Return how many workers fit on the nodes.

    A fraction of a GPU is one of a single GPU: 0.4 fits twice on each.
    """
    slack = 1e-9  # floats: 0.1 fits ten times

    def fit(node: Mapping[str, float]) -> int:
        cpus = floor(node.get("CPU", 0) / threads) if threads else sys.maxsize
        available = node.get("GPU", 0)
        if not gpus:
            return cpus
        if gpus < 1:
            return min(cpus, floor(available) * floor(1 / gpus + slack))
        return min(cpus, floor(available / gpus + slack))

    return sum(map(fit, nodes))


def is_node_lost(node: str) -> bool:
    """Tell whether the cluster has noticed that a node is lost; that takes it some 17 s."""
    return not any(info["NodeID"] == node and info["Alive"] for info in ray.nodes())


def send_user_code_by_value() -> None:
    """Let Ray send the code of the user's files: other processes cannot import their modules."""
    for name, module in list(sys.modules.items()):
        if name.startswith(PREFIX):
            ray.cloudpickle.register_pickle_by_value(module)
