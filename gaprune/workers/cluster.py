"""Which Ray is used, whether its nodes have what the workers need, and whether it still runs."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from math import floor
from typing import Any

import ray

from gaprune.errors import GapruneError, InputError, first_line
from gaprune.io.user_code import project_code
from gaprune.workers.base import LOCAL_RAY, WorkerOptions
from gaprune.workers.grpc_probe import check_grpc_server
from gaprune.workers.watchdog import start_watchdog

CLIENT = "ray://"
ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray's own: what `auto` means
AUTH_VARIABLE = "RAY_AUTH_TOKEN"  # Ray's own: without it Ray reads or makes ~/.ray/auth_token
TLS_VARIABLE = "RAY_USE_TLS"  # Ray's own
CONNECT_TIMEOUT = 5.0  # seconds
# Files in packages of the user's project that workers do not need.
_DATA = ("*.pt", "*.pth", "*.ckpt", "*.safetensors", "*.bin", "*.npz", "*.onnx", ".git")
CHECK_EVERY = 1.0  # seconds between two checks of Ray's processes
# Seconds without an answer until a process is lost. A GCS elsewhere may be started again (Ray's
# fault tolerance), but after 60 s Ray ends this process.
PATIENCE, LONG_PATIENCE = 1.0, 20.0


def connect(worker_options: WorkerOptions) -> Callable[[], None] | None:
    """Use the initialised Ray, join the cluster at the address, or start Ray on this machine.

    Return the function that ends it, or None if it was there before; GapruneError if no cluster
    answers.
    """
    if ray.is_initialized():
        return None
    address = worker_options.address
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice on CPUs
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}},
    }
    with _undo_changes():
        if address == LOCAL_RAY:
            cpus = max(worker_options.count * worker_options.threads, os.cpu_count() or 1)
            return _start_ray({**options, "address": "local", "num_cpus": cpus})
        address = check_address(address)
        if code := project_code():  # other machines do not have the user's project: it travels
            options["runtime_env"] |= {"py_modules": code, "excludes": list(_DATA)}
        try:
            if address.startswith(CLIENT):
                _enable_client_token()
            ray.init(address=address, **options)
        except Exception as error:  # its type differs between versions and ways to connect
            raise _no_cluster(address, f"{type(error).__name__}: {error}") from error
    return ray.shutdown


def _start_ray(options: dict[str, Any]) -> Callable[[], None]:
    watchdog = start_watchdog()  # first: a process that is killed while Ray starts leaves it, too

    def shut_down() -> None:
        ray.shutdown()
        if watchdog is not None:
            watchdog.communicate()

    try:
        try:
            ray.init(**options, include_dashboard=False)
        except OSError:  # Ray cannot write its token into the home folder: state one
            os.environ.setdefault(AUTH_VARIABLE, secrets.token_hex(32))
            ray.init(**options, include_dashboard=False)
    except BaseException as error:
        shut_down()
        if not isinstance(error, Exception):
            raise
        raise GapruneError(
            f"workers: Ray cannot be started on this machine ({first_line(error)}); stop other "
            "work that fills it, or use --workers=1"
        ) from error
    return shut_down


def _enable_client_token() -> None:
    """Make Ray's client send its token, without which a cluster that requires one is silent.

    `ray.init` does so by itself on every other way to connect (Ray 2.60).
    """
    with contextlib.suppress(ImportError):  # private: other versions may lack it, or not need it
        setup = import_module("ray._private.authentication.authentication_token_setup")
        setup.logger.setLevel(logging.ERROR)  # it would log where the token is
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def check_address(address: str) -> str:
    """Check in seconds what would let Ray wait for minutes; return the address behind `auto`.

    Raises:
        InputError: Ray's client is not installed.
        GapruneError: nothing listens at the address, or something that is no server of Ray.
    """
    if address == "auto":
        address = os.environ.get(ADDRESS_VARIABLE, "") or _find_local_cluster()
    if address.startswith(CLIENT) and find_spec("grpc") is None:
        raise InputError(f"ray_address: {CLIENT} needs Ray's client; pip install 'ray[client]'")
    target = _split(address.removeprefix(CLIENT))
    if target is not None:
        try:
            if os.environ.get(TLS_VARIABLE, "0") in ("1", "true"):
                socket.create_connection(target, CONNECT_TIMEOUT).close()
            else:
                check_grpc_server(target, CONNECT_TIMEOUT)
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, str(error)) from error
    return address


def _find_local_cluster() -> str:
    """Return the address that `auto` means to `ray.init`; its cluster may be gone."""
    try:
        services = import_module("ray._private.services")
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError as error:
        raise _no_cluster("auto", "none runs on this machine") from error
    except (ImportError, AttributeError):  # private: other versions may lack it
        return "auto"


def _split(address: str) -> tuple[str, int] | None:
    """Return host and port; None if the address has no port."""
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdigit() else None


def _no_cluster(address: str, why: str) -> GapruneError:
    token = ""
    if address.startswith(CLIENT):
        token = f" (and set {AUTH_VARIABLE} to the token of the cluster, if it requires one)"
    return GapruneError(
        f"ray_address: no Ray cluster answers at {address!r} ({why.strip().splitlines()[0]}); "
        f"start one with 'ray start --head', correct --ray-address, or leave it out{token}"
    )


@contextlib.contextmanager
def _undo_changes() -> Iterator[None]:
    """Undo the SIGTERM handler of `ray.init`, and prevent that it prints the log of a raylet."""
    handler, worker = signal.getsignal(signal.SIGTERM), import_module("ray._private.worker")
    listen = getattr(worker, "listen_error_messages", None)  # private: others may lack it
    vars(worker)["listen_error_messages"] = lambda *_: None
    try:
        yield
    finally:
        vars(worker)["listen_error_messages"] = listen
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


class ClusterMonitor:
    """Checks that the raylet, which manages this node, and the GCS of the cluster are there.

    Where one of them is gone (`lost`), Ray's functions wait or end this process from C++. Nobody
    starts the GCS of a Ray that this process started (`started_here`) again.
    """

    def __init__(self, *, started_here: bool) -> None:
        self.lost = False
        self._next_check = 0.0
        self._failing_since: dict[str, float] = {}
        self._processes: dict[str, tuple[tuple[str, int], float]] = {}  # name → address, patience
        if ray.util.client.ray.is_connected():
            return  # they run elsewhere, and Ray's client raises exceptions
        context = ray.get_runtime_context()
        node_id, gcs = context.get_node_id(), _split(context.gcs_address)
        if gcs is not None:
            self._processes["GCS"] = gcs, PATIENCE if started_here else LONG_PATIENCE
        for node in ray.nodes():
            if node["NodeID"] == node_id:
                address = node["NodeManagerAddress"], node["NodeManagerPort"]
                self._processes["raylet"] = address, PATIENCE

    def check(self) -> None:
        """Raise GapruneError if one of them is gone; at most one check a second is made."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_EVERY
        for name, (address, patience) in self._processes.items():
            if _accepts(address):
                self._failing_since.pop(name, None)
            elif now - self._failing_since.setdefault(name, now) >= patience:
                self.lost = True
                raise GapruneError(
                    f"workers: the {name} process of Ray is gone (killed, or out of memory?), and "
                    "with it all workers"
                )


def _accepts(address: tuple[str, int]) -> bool:
    """Return whether a process accepts connections at the address."""
    try:
        socket.create_connection(address, CHECK_EVERY).close()
    except OSError as error:
        return error.errno == errno.EMFILE  # of this process
    return True


def check_resources(worker_options: WorkerOptions) -> None:
    """Raise InputError if the cluster lacks what the workers reserve: Ray would wait for ever."""
    count, threads, gpus = worker_options.count, worker_options.threads, worker_options.gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = capacity(nodes, threads, gpus)
    if fit >= count:
        return
    totals = [sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")]
    has = f"the Ray cluster has {totals[0]:g} CPUs and {totals[1]:g} GPUs on {len(nodes)} node(s)"
    setting, remedy = "workers", f"use --workers={fit}"
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
