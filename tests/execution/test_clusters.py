"""Real Dask clusters in processes of their own: the same bytes as here, whatever becomes of the workers."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cloudreg import cli
from cloudreg.errors import BlocksFailedError, InputError, ServerUnreachableError
from cloudreg.execution import Engine, Ledger, progress
from cloudreg.execution.check import check_cluster
from cloudreg.execution.clusters import ClusterPlan, read_cluster
from cloudreg.io import convert, open_volume, write_volume
from cloudreg.space import Grid

# What distributed says of workers that come and go is no news here.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def impatience():
    """A worker that has died is not called for half a minute."""
    import dask
    import distributed  # noqa: F401 - has to have set what it sets before

    with dask.config.set({"distributed.comm.timeouts.connect": "3s"}):
        yield


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one thread each, 1 GB each."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="1GB", dashboard_address=":0", silence_logs=50
    ) as running:
        yield running


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A computing centre of one machine: programs in the place of SLURM's, that run and end jobs at once."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    # The script is gone as soon as sbatch has ended: a copy of it runs.
    (folder / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {folder}/job.$$\nsetsid sh {folder}/job.$$ >>{folder}/log 2>&1 </dev/null &\n'
        f'echo $! >> {folder}/started\necho "Submitted batch job $!"\n'
    )
    (folder / "scancel").write_text(f"#!/bin/sh\nfor job; do echo $job >> {folder}/ended; kill -- -$job; done\n")
    for name in ("sbatch", "scancel"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    file = tmp_path / "lab.yaml"
    file.write_text(
        "cluster: slurm\nworkers: 2\noptions:\n  cores: 1\n  memory: 1GB\n  queue: brains\n  walltime: '01:00:00'\n"
        f"  interface: lo\n  local_directory: {tmp_path}\n  log_directory: {folder}\n"
        f"  scheduler_options: {{dashboard_address: ':0'}}\n  python: {sys.executable}\n"
    )
    yield file
    for job in (folder / "started").read_text().split() if (folder / "started").exists() else []:
        subprocess.run(["kill", "--", f"-{job}"], stderr=subprocess.DEVNULL)


def converted(source, out, engine):
    """Convert a volume; return a hash of each file of the result."""
    convert(open_volume(source), str(out), engine=engine)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def brain(tmp_path):
    shape = (130, 150, 140)
    array = np.random.default_rng(1).integers(0, 2000, shape).astype(np.uint16)
    path = tmp_path / "brain.ome.zarr"
    write_volume(path, array, Grid.from_spacing(shape, (4, 4, 4)))
    return path


def test_a_cluster_gives_the_same_bytes(cluster, brain, tmp_path):
    with Engine(workers=1, memory="64MB") as engine:
        here = converted(brain, tmp_path / "here.ome.zarr", engine)
    with Engine(cluster=cluster.scheduler_address) as engine:
        assert converted(brain, tmp_path / "there.ome.zarr", engine) == here
    assert len(here) > 10


def test_blocks_are_as_large_as_the_workers_can_bear(cluster):
    with Engine(cluster=cluster.scheduler_address, workers=7) as engine:
        assert engine.workers == 2
        assert engine.memory_per_block_bytes == pytest.approx(0.6e9, rel=0.01)
    with Engine(cluster=cluster.scheduler_address, memory="200MB") as engine:
        assert engine.memory_per_block_bytes == 100_000_000


def work_in_other_processes(x):
    return os.getpid()


def test_blocks_run_on_the_workers_and_not_here(cluster):
    with Engine(cluster=cluster.scheduler_address) as engine:
        pids = set(engine.run(work_in_other_processes, range(20), label="where"))
    assert len(pids) == 2 and os.getpid() not in pids


def test_the_check_compares_versions_and_paths(cluster, tmp_path):
    from distributed import Client

    with Client(cluster.scheduler_address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
        rows = check_cluster(client, [str(tmp_path)])
        assert rows["workers"] == "2 on 1 machine(s)" and rows["threads"] == "2" and rows["memory"] == "2 GB"
        assert f"numpy {np.__version__}" in rows["versions"] and rows[str(tmp_path)] == "seen by all"
        with pytest.raises(InputError, match=r"does not see /nowhere .*all machines share"):
            check_cluster(client, ["/nowhere"])
        client.run(pretend_numpy_is_older)
        try:
            with pytest.raises(InputError, match=r"worker tcp://.* has numpy 1\.0, here it is .*same environment"):
                check_cluster(client)
        finally:
            client.run(stop_pretending)


def pretend_numpy_is_older():
    import importlib.metadata

    real = importlib.metadata.version

    def pretended(name):
        return "1.0" if name == "numpy" else real(name)

    pretended.real = real
    importlib.metadata.version = pretended


def stop_pretending():
    import importlib.metadata

    importlib.metadata.version = importlib.metadata.version.real


class Deadly:
    """Kills its worker at one item: the first time, or always. The tests above want both workers."""

    def __init__(self, marker, always):
        self.marker, self.always = marker, always

    def __call__(self, x):
        if x == 5 and (self.always or not self.marker.exists()):
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def test_a_worker_that_dies_is_made_up_for(cluster, tmp_path):
    with Engine(cluster=cluster.scheduler_address) as engine:
        assert engine.run(Deadly(tmp_path / "died", False), range(12), label="die") == list(range(12))
    assert (tmp_path / "died").exists()


def test_a_block_that_kills_every_worker_fails_by_name_after_the_others(cluster, tmp_path):
    ledger = Ledger(tmp_path / "done")
    with Engine(cluster=cluster.scheduler_address) as engine:
        with pytest.raises(BlocksFailedError, match="die: ") as caught:
            engine.run(Deadly(tmp_path / "died", True), range(12), label="die", ledger=ledger)
        assert "5" in caught.value.failures and "5" not in ledger
        # What lay on a worker beside it may be blamed with it; nothing else is lost, and the next run does the rest.
        assert len(ledger) + len(caught.value.failures) == 12
        engine.run(int, range(12), label="again", ledger=ledger)
    assert len(ledger) == 12


def test_a_queue_of_a_computing_centre_runs_the_blocks(slurm, brain, tmp_path):
    with Engine(workers=1, memory="64MB") as engine:
        here = converted(brain, tmp_path / "here.ome.zarr", engine)
    with Engine(cluster=str(slurm)) as engine:
        assert converted(brain, tmp_path / "there.ome.zarr", engine) == here
    job = next((slurm.parent / "slurm").glob("job.*")).read_text()
    assert "#SBATCH -p brains" in job and "#SBATCH -t 01:00:00" in job
    started, ended = ((slurm.parent / "slurm" / name).read_text().split() for name in ("started", "ended"))
    assert len(started) == 2 and sorted(ended) == sorted(started)


def test_any_class_of_clusters_may_be_named(tmp_path):
    file = tmp_path / "lab.yaml"
    file.write_text(
        "cluster: distributed.LocalCluster\nworkers: 2\n"
        "options: {n_workers: 0, threads_per_worker: 1, dashboard_address: ':0', silence_logs: 50}\n"
    )
    with Engine(cluster=str(file)) as engine:
        pids = set(engine.run(work_in_other_processes, range(40), label="where"))
    assert pids and os.getpid() not in pids


def test_no_scheduler_is_one_line(monkeypatch):
    monkeypatch.setattr("cloudreg.execution.clusters._CONNECT_S", 1)
    with pytest.raises(ServerUnreachableError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        Engine(cluster="tcp://127.0.0.1:9").run(int, range(9), label="stage")


def test_a_cluster_that_goes_away_is_one_line_and_what_is_done_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("cloudreg.execution.clusters._CONNECT_S", 3)
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as running:
        ledger = Ledger(tmp_path / "done")
        with Engine(cluster=running.scheduler_address) as engine:
            engine.run(int, range(3), label="first", ledger=ledger)
            threading.Timer(1.0, running.close).start()
            with pytest.raises(ServerUnreachableError, match="connection to the Dask cluster is lost"):
                engine.run(lambda x: time.sleep(5), range(3, 6), label="second", ledger=ledger)
    assert len(ledger) == 3


def test_the_commands_start_and_check_a_cluster(slurm, monkeypatch, capsys):
    command = [sys.executable, "-m", "cloudreg", "cluster", "start", str(slurm)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            address = running.stdout.readline().strip()
            assert address.startswith("tcp://")
            monkeypatch.setattr(progress, "_console", None)
            monkeypatch.setattr(sys, "argv", ["cloudreg", "cluster", "check", address, str(slurm)])
            cli.main()
        except SystemExit as stop:
            assert not stop.code
        finally:
            running.send_signal(signal.SIGINT)
    assert running.returncode == 0
    assert f"{slurm}  seen by all" in capsys.readouterr().out
    ended = (slurm.parent / "slurm" / "ended").read_text().split()
    assert sorted(ended) == sorted((slurm.parent / "slurm" / "started").read_text().split())


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("tcp://host:8786", "tcp://host:8786"),
        ("slurm", ClusterPlan("dask_jobqueue.SLURMCluster")),
        ("pbs:20", ClusterPlan("dask_jobqueue.PBSCluster", 20)),
        ("kubernetes:3", ClusterPlan("dask_kubernetes.operator.KubeCluster", 3)),
    ],
)
def test_names_and_addresses(text, plan):
    assert read_cluster(text) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("here", "--cluster takes tcp://host:8786, slurm, .*; got 'here'"),
        ("slurm:many", "got 'slurm:many'"),
        ("slurm:0", "got 'slurm:0'"),
        ("nowhere.yaml", "expected a YAML file of a cluster at nowhere.yaml"),
    ],
)
def test_what_is_no_cluster_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Engine(cluster=text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "expected cluster: NAME in"),
        ("cluster: slurm\njobs: 3", r"expected cluster, workers \(a number\) and options"),
        ("cluster: slurm\nworkers: none", "expected cluster, workers"),
        ("cluster: no.such.Class", "expected a class of Dask clusters named no.such.Class .*check the name"),
        ("cluster: kubernetes", "dask_kubernetes.operator.KubeCluster .*run pip install dask-kubernetes"),
        (
            "cluster: dask_jobqueue.SLURMCluster\noptions: {cores: 1}",
            "SLURMCluster does not take these options: .*memory",
        ),
        (
            "cluster: slurm\noptions: {cores: 1, memory: 1GB, nonsense: 1}",
            "SLURMCluster does not take these options: .*nonsense",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    (tmp_path / "lab.yaml").write_text(content)
    with pytest.raises(InputError, match=message), Engine(cluster=str(tmp_path / "lab.yaml")) as engine:
        engine.run(int, range(9), label="stage")
