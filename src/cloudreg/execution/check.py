"""Whether the workers of a cluster can do our work: the same libraries, and sight of the same files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cloudreg.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

_PACKAGES = ("cloudreg", "numpy", "tensorstore", "numba", "scipy", "distributed")


def check_cluster(client: Client, paths: Sequence[str] = ()) -> dict[str, str]:
    """Ask every worker of a cluster what it has and sees.

    Parameters
    ----------
    client
        Of the cluster.
    paths
        Files and folders that a job would read, or the folder that it would write to; addresses in buckets too.

    Returns
    -------
    dict
        What the cluster is, in words.

    Raises
    ------
    InputError
        If a worker has other versions than this machine, or does not see a path.
    """
    places = [path if "://" in path else os.path.abspath(path) for path in paths]  # noqa: PTH100 - text, not a Path
    ask = _question(places)
    here = ask()
    answers = client.run(ask)
    for worker, there in sorted(answers.items()):
        differing = [name for name in here["versions"] if there["versions"][name] != here["versions"][name]]
        if differing:
            name = differing[0]
            raise InputError(
                f"worker {worker} has {name} {there['versions'][name]}, here it is {here['versions'][name]}: give all "
                "machines the same environment"
            )
        for place, problem in there["unseen"].items():
            raise InputError(
                f"worker {worker} does not see {place} ({problem}): choose a place that all machines share"
            )
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    rows = {
        "workers": f"{len(answers)} on {len({worker['host'] for worker in workers})} machine(s)",
        "threads": str(sum(worker["nthreads"] for worker in workers)),
        "memory": f"{sum(worker['memory_limit'] for worker in workers) / 1e9:.3g} GB",
        "versions": ", ".join(f"{name} {version}" for name, version in here["versions"].items()),
    }
    return rows | dict.fromkeys(places, "seen by all")


def _question(places: Sequence[str]) -> Callable[[], dict[str, Any]]:
    def answer() -> dict[str, Any]:
        # A worker may lack this very package: what it runs is sent whole, so everything is imported in here.
        import importlib.metadata
        import platform
        from pathlib import Path

        versions = {"python": platform.python_version()}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "nothing"
        unseen = {}
        for place in places:
            if "://" not in place:
                if not Path(place).exists():
                    unseen[place] = "there is no such file or folder"
            elif versions["cloudreg"] != "nothing":
                from cloudreg.errors import CloudRegError
                from cloudreg.io.objects import require_bucket

                try:
                    require_bucket(place)
                except CloudRegError as error:
                    unseen[place] = str(error)
        return {"versions": versions, "unseen": unseen}

    packages = _PACKAGES
    return answer
