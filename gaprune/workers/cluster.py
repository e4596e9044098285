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
from gaprune.workers.base import LOCAL_RAY, WorkerOptions

CLIENT = "ray://"
ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray's own: what `auto` means
AUTH_VARIABLE = "RAY_AUTH_TOKEN"  # Ray's own: without it Ray reads or makes ~/.ray/auth_token
CONNECT_TIMEOUT = 5.0  # seconds


def connect(worker_options: WorkerOptions) -> bool:
    """Use the initialised Ray, join the cluster at the address, or start Ray on this machine.

    Return whether the caller must shut it down; GapruneError if no cluster answers.
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
    with _keep_sigterm_handler():
        if address == LOCAL_RAY:
            cpus = max(worker_options.count * worker_options.threads, os.cpu_count() or 1)
            options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            try:
                ray.init(**options)
            except OSError:  # Ray cannot write its token into the home folder: state one
                if AUTH_VARIABLE in os.environ:
                    raise
                os.environ[AUTH_VARIABLE] = secrets.token_hex(32)
                ray.init(**options)
            return True
        check_address(address)
        try:
            if address.startswith(CLIENT):
                _enable_client_token()
            ray.init(address=address, **options)
        except Exception as error:  # its type differs between versions and ways to connect
            raise _no_cluster(address, f"{type(error).__name__}: {error}") from error
    return True


def _enable_client_token() -> None:
    """Make Ray's client send its token, without which a cluster that requires one is silent.

    `ray.init` does so by itself on every other way to connect (Ray 2.60).
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
    """Raise InputError if the cluster lacks what the workers reserve: Ray would wait for ever."""
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
    """Return how many workers fit on the nodes; 0.4 of a GPU fits twice on each GPU."""
    slack, fit = 1e-9, 0  # floats: 0.1 fits ten times
    for node in nodes:
        cpus = floor(node.get("CPU", 0) / threads) if threads else sys.maxsize
        available = node.get("GPU", 0)
        if gpus >= 1:
            cpus = min(cpus, floor(available / gpus + slack))
        elif gpus:  # a fraction is one of a single GPU
            cpus = min(cpus, floor(available) * floor(1 / gpus + slack))
        fit += cpus
    return fit
