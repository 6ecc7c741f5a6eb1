"""Dask clusters for sweeps: the one that a name means, what its workers offer, recipes for others.

Dask is optional, imported when a scheduler is asked for: pip install 'periodic-lib[sweeps]'.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from periodic_lib.project import ConfigError, print_message

LEGAL = 'None, "local", an address such as "tcp://10.0.0.1:8786", or a distributed.Client'
CONNECT_SECONDS, WORKERS_SECONDS = 10, 120
SETTINGS = {  # of Dask, while a sweep runs
    "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    "distributed.scheduler.work-stealing": True,
    "distributed.scheduler.allowed-failures": 3,  # workers that one stack may lose
    "distributed.worker.daemon": True,
    "distributed.worker.profile.enabled": False,  # it samples stacks 100 times a second
    # as by default, watching takes 7 % of a core with two workers (AMD EPYC); so it takes 1 %
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.memory.monitor-interval": "500ms",
}


def dask() -> object:
    """Return the module `distributed`.

    Raises
    ------
    ConfigError : where it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module("distributed")
    except ImportError:
        raise ConfigError(
            "`scheduler` needs Dask, which is not installed: pip install 'periodic-lib[sweeps]', "
            "in the project .venv/bin/python -m pip install -c requirements.lock -e '.[sweeps]'."
        ) from None


@contextmanager
def client_of(scheduler: object, workers: int | None = None, threads: int = 1) -> Iterator[object]:
    """Yield a `distributed.Client` of what `scheduler` names; what was started here is closed.

    Parameters
    ----------
    scheduler : "local" starts worker processes here; an address finds a scheduler that was started
        by hand or by a recipe; a Client is used as it is.
    workers : number of worker processes of "local"; None: one for each GPU, or for each `threads`
        cores. Of another scheduler: how many to wait for, 1 if None.
    threads : threads of a worker of "local".

    Raises
    ------
    ConfigError : for another kind of value, a scheduler that cannot be reached, or has no workers.
    """
    distributed = dask()
    import dask as settings

    for name in ("distributed", "distributed.client"):  # their errors are told in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with settings.config.set(SETTINGS):
        if isinstance(scheduler, distributed.Client):
            yield _with_workers(scheduler, workers or 1)
        elif scheduler == "local":
            with _local(workers, threads) as cluster, distributed.Client(cluster) as client:
                yield _with_workers(client, 1)
        elif isinstance(scheduler, str) and "://" in scheduler:
            client = _reached(scheduler)
            try:
                yield _with_workers(client, workers or 1)
            finally:
                with suppress(Exception):  # of a scheduler that is gone
                    client.close(timeout=2)
        else:
            raise ConfigError(f"`scheduler` must be {LEGAL}; got {scheduler!r}.")


def _reached(address: str) -> object:
    distributed = dask()
    try:
        return distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"`scheduler` {address!r} cannot be reached ({type(error).__name__}). Start one with "
            "`dask scheduler`, workers with `dask worker ADDRESS --nthreads 1 --resources CPU=1`."
        ) from None


def _with_workers(client: object, number: int) -> object:
    try:
        client.wait_for_workers(number, timeout=WORKERS_SECONDS)
    except TimeoutError:
        raise ConfigError(
            f"`scheduler` {client.scheduler.address} has fewer than {number} workers after "
            f"{WORKERS_SECONDS} s: start them, `dask worker ADDRESS --nthreads 1 "
            "--resources CPU=1`, or ask for fewer."
        ) from None
    print_message(f"dashboard: {client.dashboard_link}")
    return client


def _local(workers: int | None, threads: int) -> object:
    distributed, quiet = dask(), {"silence_logs": logging.ERROR}
    parts = local_workers(workers, threads, gpus())
    kinds = {
        name: {"cls": distributed.Nanny, "options": part | quiet} for name, part in parts.items()
    }
    how = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": distributed.Scheduler, "options": how}
    return distributed.SpecCluster(workers=kinds, scheduler=scheduler, silence_logs=logging.ERROR)


def gpus() -> int:
    """Return the number of CUDA devices here."""
    import torch

    return torch.cuda.device_count()


def local_workers(workers: int | None, threads: int, devices: int) -> dict[int, dict]:
    """Return the options of the worker processes of "local": one thread for tasks each, and what
    they offer, one GPU token or `threads` CPU tokens.

    >>> local_workers(2, 1, 0)[1]["resources"]
    {'CPU': 1}
    >>> local_workers(None, 1, 4)[3]["env"]["CUDA_VISIBLE_DEVICES"]
    '3'
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    number = workers or devices or max(1, (cores or 1) // threads)
    found = {}
    for worker in range(number):
        env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        offer = {"GPU": 1} if worker < devices else {"CPU": threads}
        if devices:
            env["CUDA_VISIBLE_DEVICES"] = str(worker) if worker < devices else ""
        found[worker] = {"nthreads": 1, "resources": offer, "env": env, "host": "127.0.0.1"}
    return found


# ---------------------------------------------------------------- what workers offer


def demand(workers: Mapping[str, Mapping], threads: int = 1) -> dict[str, int]:
    """Return the resources that a stack asks for: a GPU token where workers have them, else as many
    CPU tokens as threads, else nothing: one stack for each thread of a worker.

    `workers`: address -> facts, as `Client.scheduler_info()["workers"]` has them.

    Raises
    ------
    ConfigError : if no worker has as many CPU tokens.

    >>> demand({"a": {"resources": {"GPU": 1}}, "b": {"resources": {}}})
    {'GPU': 1}
    >>> demand({"a": {"resources": {"CPU": 4}}}, threads=2)
    {'CPU': 2}
    """
    offers = [worker.get("resources") or {} for worker in workers.values()]
    if any(offer.get("GPU") for offer in offers):
        return {"GPU": 1}
    largest = max((offer.get("CPU", 0) for offer in offers), default=0)
    if not largest:
        return {}
    if largest < threads:
        raise ConfigError(
            f"`threads` must be at most what a worker offers, {largest:g} CPU tokens; got "
            f"{threads}. Start workers with --resources CPU={threads}, or take fewer threads."
        )
    return {"CPU": threads}


def slots(workers: Mapping[str, Mapping], needs: Mapping[str, int]) -> int:
    """Return how many stacks the workers train at once.

    >>> slots({"a": {"nthreads": 4, "resources": {"CPU": 4}}}, {"CPU": 2})
    2
    >>> slots({"a": {"nthreads": 1}, "b": {"nthreads": 2}}, {})
    3
    """
    return sum(_slots(worker, needs) for worker in workers.values())


def _slots(worker: Mapping, needs: Mapping[str, int]) -> int:
    offer, at_most = worker.get("resources") or {}, [worker.get("nthreads", 1)]
    return int(min(at_most + [offer.get(name, 0) // number for name, number in needs.items()]))


def memory(workers: Mapping[str, Mapping], needs: Mapping[str, int]) -> float | None:
    """Return the least memory that a stack has on a worker, in bytes; None where none is said."""
    shares = [
        worker["memory_limit"] / number
        for worker in workers.values()
        if (number := _slots(worker, needs)) and worker.get("memory_limit")
    ]
    return min(shares, default=None)


# ---------------------------------------------------------------- recipes


def slurm(
    folder: str,
    threads: int = 1,
    gpu: bool = False,
    memory: str = "4GB",
    walltime: str = "04:00:00",
    queue: str | None = None,
) -> dict:
    """Return the arguments of `dask_jobqueue.SLURMCluster` whose jobs are workers of a sweep.

    One job is one worker: `threads` cores, or one GPU with them. It stops taking stacks five
    minutes before its time is over; a stack that was cut off goes on elsewhere from its state.

    Parameters
    ----------
    folder : of results, on storage that all nodes share (PERIODIC_CACHE).
    threads, gpu, memory, walltime, queue : of one job.
    """
    offer = "GPU=1" if gpu else f"CPU={threads}"
    hours, minutes, seconds = map(int, walltime.split(":"))
    lifetime = max(60, 3600 * hours + 60 * minutes + seconds - 300)
    lines = [f"export {name}={threads}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    ends = ["--lifetime", f"{lifetime}s", "--lifetime-stagger", "60s"]
    return {
        "queue": queue,
        "cores": 1,  # threads that take tasks; training has `job_cpu`
        "processes": 1,
        "job_cpu": threads,
        "memory": memory,
        "walltime": walltime,
        "job_extra_directives": ["--gres=gpu:1"] if gpu else [],
        "job_script_prologue": [*lines, f"export PERIODIC_CACHE={folder}"],
        "worker_extra_args": ["--resources", offer, *ends],
    }


def kubernetes(
    image: str,
    folder: str,
    claim: str,
    name: str = "periodic",
    workers: int = 8,
    threads: int = 1,
    gpu: bool = False,
    memory: str = "4Gi",
) -> dict:
    """Return a `DaskCluster` of the Dask operator, for `dask_kubernetes.operator.KubeCluster(
    custom_cluster_spec=...)` or, written as YAML, for `kubectl apply`.

    Parameters
    ----------
    image : with this library and `periodic-lib[sweeps]` in it.
    folder, claim : of results, and the persistent volume claim (ReadWriteMany) mounted there.
    name, workers, threads, gpu, memory : of the cluster, and of one worker.
    """
    offer = "GPU=1" if gpu else f"CPU={threads}"
    command = ["dask", "worker", "--nthreads", "1", "--resources", offer]
    limits = {"cpu": str(threads), "memory": memory} | ({"nvidia.com/gpu": "1"} if gpu else {})
    threading = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    env = [{"name": key, "value": str(threads)} for key in threading]
    env += [{"name": "PERIODIC_CACHE", "value": folder}]
    worker = {
        "name": "worker",
        "image": image,
        "args": [*command, "--name", "$(DASK_WORKER_NAME)", "--memory-limit", memory],
        "env": env,
        "resources": {"limits": limits, "requests": limits},
        "volumeMounts": [{"name": "results", "mountPath": folder}],
    }
    volume = {"name": "results", "persistentVolumeClaim": {"claimName": claim}}
    ports = [{"name": "tcp-comm", "containerPort": 8786}, {"name": "http", "containerPort": 8787}]
    scheduler = {"name": "scheduler", "image": image, "args": ["dask", "scheduler"], "ports": ports}
    labels = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
    reached = [
        {"name": port["name"], "protocol": "TCP", "port": port["containerPort"]}
        | {"targetPort": port["name"]}
        for port in ports
    ]
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": name},
        "spec": {
            "worker": {
                "replicas": workers,
                "spec": {"containers": [worker], "volumes": [volume]},
            },
            "scheduler": {
                "spec": {"containers": [scheduler]},
                "service": {"type": "ClusterIP", "selector": labels, "ports": reached},
            },
        },
    }
