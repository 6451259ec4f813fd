"""The one way blocks are run: a Dask cluster, fed a few blocks at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from cloudreg.errors import BlocksFailedError, InputError
from cloudreg.execution.ledger import Ledger
from cloudreg.execution.memory import memory_budget_bytes
from cloudreg.execution.progress import say, track

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine:
    """Runs one function over many blocks, locally or on a Dask cluster.

    Parameters
    ----------
    cluster
        Address of a running Dask scheduler (``tcp://…``); by default threads of this process.
    workers
        Number of threads of the local cluster; by default one a core.
    memory
        Bytes, or text such as ``"4GB"``, that all blocks in flight together may use; by default 60 % of what is
        free. Stages choose their block sizes so that ``workers`` blocks fit.

    Notes
    -----
    The cluster starts at the first use with more than two blocks a worker: fewer run in plain threads, and short jobs
    never pay for its start. Blocks are submitted a few at a time: the scheduler never holds a graph of the whole
    volume.
    """

    def __init__(
        self, *, cluster: str | None = None, workers: int | None = None, memory: str | int | None = None
    ) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"the number of workers must be at least 1, got {workers}")
        if cluster is not None and "://" not in cluster:
            raise InputError(f"--cluster takes the address of a Dask scheduler, tcp://host:8786, got {cluster!r}")
        self.cluster = cluster
        self.workers = workers or _cores()
        self.memory_bytes = memory_budget_bytes(memory)
        self._client: Client | None = None
        self._local: Any = None

    @property
    def memory_per_block_bytes(self) -> int:
        """What one block may use so that all workers together keep to the budget."""
        return self.memory_bytes // self.workers

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the cluster (a local one ends)."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._local is not None:
            self._local.close()
            self._local = None

    def run(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        label: str,
        unit: str = "blocks",
        ledger: Ledger | None = None,
        sizes: Sequence[int] | None = None,
    ) -> list[Result | None]:
        """Call ``task`` on every item.

        Parameters
        ----------
        task
            Picklable; the arrays that it holds are sent to each worker once.
        items
            Their ``str()`` is their name in the ledger and in messages, so it must be stable and unique.
        label, unit
            Words for the progress bar.
        ledger
            Items that it holds are skipped, and each item is marked when it is done.
        sizes
            Bytes of each item; progress is then shown in megabytes.

        Returns
        -------
        list
            Results in the order of ``items``; None where the ledger said that an item was done.

        Raises
        ------
        BlocksFailedError
            After all other items are done, if some failed with anything but an `InputError`.
        InputError
            The first one that an item raised, as it is.
        """
        results: list[Result | None] = [None] * len(items)
        waiting = [i for i, item in enumerate(items) if ledger is None or str(item) not in ledger]
        failures: dict[str, BaseException] = {}

        amounts = [1.0] * len(items) if sizes is None else [size / 1e6 for size in sizes]
        with track(label, sum(amounts), unit if sizes is None else "MB") as advance:

            def finish(index: int, outcome: Result | BaseException, failed: bool) -> None:
                if failed:
                    failures[str(items[index])] = outcome  # type: ignore[assignment]
                else:
                    results[index] = outcome  # type: ignore[assignment]
                    if ledger is not None:
                        ledger.mark(str(items[index]))
                advance(amounts[index])

            advance(sum(amounts) - sum(amounts[i] for i in waiting))
            if self.cluster is None and self.workers == 1:
                for index in waiting:
                    finish(index, *_attempt(task, items[index]))
            elif self.cluster is None and len(waiting) <= 2 * self.workers:
                with ThreadPoolExecutor(self.workers) as threads:
                    outcomes = threads.map(lambda i: _attempt(task, items[i]), waiting)
                    for index, outcome in zip(waiting, outcomes, strict=True):
                        finish(index, *outcome)
            else:
                self._run_on_cluster(task, items, waiting, finish)
        for error in failures.values():
            if isinstance(error, InputError):
                raise error
        if failures:
            raise BlocksFailedError(label, failures) from next(iter(failures.values()))
        return results

    def _run_on_cluster(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        waiting: list[int],
        finish: Callable[[int, Any, bool], None],
    ) -> None:
        from distributed import as_completed

        client = self._connect()
        # `hash=False`: the content need not be hashed, it is new each time.
        shared = client.scatter(task, broadcast=True, hash=False)
        queue = iter(waiting)
        # One spare block per worker hides the time between the end of a block and the start of the next.
        in_flight = {
            client.submit(_attempt, shared, items[i], pure=False): i for i in islice(queue, 2 * self._capacity(client))
        }
        completed = as_completed(list(in_flight), loop=client.loop)
        for future in completed:
            index = in_flight.pop(future)
            finish(index, *future.result())
            future.release()
            following = next(queue, None)
            if following is not None:
                new = client.submit(_attempt, shared, items[following], pure=False)
                in_flight[new] = following
                completed.add(new)

    def _capacity(self, client: Client) -> int:
        return max(1, sum(int(n) for n in client.nthreads().values()))

    def _connect(self) -> Client:
        if self._client is None:
            import dask
            from distributed import Client, LocalCluster

            if self.cluster is not None:
                self._client = Client(self.cluster, timeout=30, set_as_default=False)
            else:
                dask.config.set({"distributed.worker.memory.target": False, "distributed.worker.memory.spill": False})
                self._local = LocalCluster(
                    n_workers=1,
                    threads_per_worker=self.workers,
                    processes=False,
                    dashboard_address=":0",
                    silence_logs=50,
                    memory_limit=0,
                )
                self._client = Client(self._local, set_as_default=False)
            say(f"Dask dashboard: {self._client.dashboard_link}")
        return self._client


def _cores() -> int:
    """Return the cores that this process may use, not all that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _attempt(task: Callable[[Item], Result], item: Item) -> tuple[Result | BaseException, bool]:
    """Return the result, or the error and True: a failed block must not stop the others."""
    try:
        return task(item), False
    except Exception as error:  # noqa: BLE001 - handed to `Engine.run`, which raises it
        return error, True
