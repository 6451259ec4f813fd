"""Which Dask cluster: a running one by its address, a queue of a computing centre, or any class of a YAML file.

``--cluster`` takes

- ``tcp://host:8786``: a running scheduler;
- ``slurm``, ``sge``, ``pbs``, ``lsf``, ``htcondor``, ``moab``, ``oar``, with ``:20`` after it for 20 jobs: what a job
  has stands in the settings of dask-jobqueue (``~/.config/dask/jobqueue.yaml``: cores, memory, queue, walltime);
- ``ec2``, ``kubernetes``: by dask-cloudprovider and dask-kubernetes, in the same way;
- ``lab.yaml``: ``cluster`` is one of these names or a class such as ``lab.clusters.Ours``, ``workers`` how many jobs,
  and ``options`` what the class takes.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cloudreg.errors import CloudRegError, InputError, ServerUnreachableError
from cloudreg.execution.progress import say

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

_CLASSES = {
    "slurm": "dask_jobqueue.SLURMCluster",
    "sge": "dask_jobqueue.SGECluster",
    "pbs": "dask_jobqueue.PBSCluster",
    "lsf": "dask_jobqueue.LSFCluster",
    "htcondor": "dask_jobqueue.HTCondorCluster",
    "moab": "dask_jobqueue.MoabCluster",
    "oar": "dask_jobqueue.OARCluster",
    "ec2": "dask_cloudprovider.aws.EC2Cluster",
    "kubernetes": "dask_kubernetes.operator.KubeCluster",
}
_INSTALL = {
    "dask_jobqueue": "'cloudreg[cluster]'",
    "dask_cloudprovider": "'dask-cloudprovider[aws]'",
    "dask_kubernetes": "dask-kubernetes",
}
_CONNECT_S = 30
_FORMS = f"tcp://host:8786, {', '.join(_CLASSES)} (with :20 for 20 jobs), or a YAML file"


@dataclass(frozen=True)
class ClusterPlan:
    """A cluster that is yet to be made.

    Parameters
    ----------
    class_name
        Dotted name of a class of Dask clusters.
    workers
        How many jobs or machines it is to have.
    options
        What the class takes.
    """

    class_name: str
    workers: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def read_cluster(text: str) -> str | ClusterPlan:
    """Return the address of a running scheduler as it is, or what is to be made.

    Raises
    ------
    InputError
        If the text is none of the forms, or the file is damaged.
    """
    if "://" in text:
        return text
    if text.endswith((".yaml", ".yml")):
        return _read_file(Path(text))
    name, _, count = text.partition(":")
    if name not in _CLASSES or (count and not count.isdecimal()) or count == "0":
        raise InputError(f"--cluster takes {_FORMS}; got {text!r}")
    return ClusterPlan(_CLASSES[name], int(count or 1))


def start_cluster(plan: ClusterPlan) -> Cluster:
    """Make a cluster and ask for its workers, which come when they can.

    Raises
    ------
    InputError
        If the class is not installed, or does not take the options.
    CloudRegError
        If the cluster can't be made.
    """
    module, _, name = plan.class_name.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        package = module.split(".")[0]
        remedy = f"run pip install {_INSTALL[package]}" if package in _INSTALL else "check the name"
        raise InputError(f"expected a class of Dask clusters named {plan.class_name} ({error}): {remedy}") from error
    try:
        cluster: Cluster = made(**plan.options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} does not take these options: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise CloudRegError(f"could not start {name}: {' '.join(str(error).split())}") from error
    # The classes of queues count jobs, of which one may be several workers.
    try:
        cluster.scale(jobs=plan.workers)
    except TypeError:
        cluster.scale(plan.workers)
    return cluster


def connect(cluster: Cluster | str) -> Client:
    """Return a client of a cluster that has a worker; wait for the first, which a queue may keep back for long.

    Raises
    ------
    ServerUnreachableError
        If no scheduler answers at the address.
    """
    from distributed import Client

    try:
        client = Client(cluster, timeout=_CONNECT_S, set_as_default=False)
    except OSError as error:
        raise ServerUnreachableError(f"no Dask scheduler answers at {cluster}: check that it runs there") from error
    say(f"Dask dashboard: {client.dashboard_link}")
    if not client.nthreads():
        say("waiting for the first worker of the cluster")
        client.wait_for_workers(1)
    return client


def _read_file(path: Path) -> ClusterPlan:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"expected a YAML file of a cluster at {path}: {' '.join(str(error).split())}") from error
    name = values.get("cluster") if isinstance(values, dict) else None
    if not isinstance(name, str):
        raise InputError(f"expected cluster: NAME in {path}, one of {', '.join(_CLASSES)} or a class")
    unknown = set(values) - {"cluster", "workers", "options"}
    workers, options = values.get("workers", 1), values.get("options") or {}
    if unknown or not isinstance(options, dict) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"expected cluster, workers (a number) and options (by name) in {path}, got {values}")
    return ClusterPlan(_CLASSES.get(name, name), workers, options)
