"""``cloudreg cluster``: Dask clusters for the other commands' ``--cluster``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

cluster_app = typer.Typer(help="Dask clusters, for --cluster of the other commands.", no_args_is_help=True)

Which = Annotated[
    str,
    typer.Argument(
        metavar="CLUSTER", help="tcp://host:8786; slurm, sge, pbs, lsf… with :20 for 20 jobs; or a YAML file."
    ),
]


@cluster_app.command("start")
def start(cluster: Which) -> None:
    """Start a cluster, print its address, and keep it until Ctrl-C: several commands may use it then."""
    from cloudreg.errors import InputError
    from cloudreg.execution.clusters import connect, read_cluster, start_cluster
    from cloudreg.execution.progress import enable

    enable()
    plan = read_cluster(cluster)
    if isinstance(plan, str):
        raise InputError(f"{plan} is the address of a cluster that runs already: give its kind, such as slurm:20")
    with start_cluster(plan) as running:
        print(running.scheduler_address, flush=True)
        connect(running).close()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return


@cluster_app.command("check")
def check(
    cluster: Which,
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]…", help="What a job would read, and where it would write.")
    ] = None,
) -> None:
    """See whether all workers have the same CloudReg as this machine, and see the same files."""
    from cloudreg.execution.check import check_cluster
    from cloudreg.execution.clusters import connect, read_cluster, start_cluster
    from cloudreg.execution.progress import enable

    enable()
    plan = read_cluster(cluster)
    owned = None if isinstance(plan, str) else start_cluster(plan)
    try:
        with connect(plan if isinstance(plan, str) else owned) as client:
            for name, value in check_cluster(client, paths or ()).items():
                print(f"{name:<12}{value}" if len(name) < 12 else f"{name}  {value}")
    finally:
        if owned is not None:
            owned.close()
