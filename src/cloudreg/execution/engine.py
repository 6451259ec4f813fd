"""The one way blocks are run: a Dask cluster, fed a few blocks at a time."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from cloudreg.errors import BlocksFailedError, InputError, ServerUnreachableError
from cloudreg.execution.clusters import ClusterPlan, connect, read_cluster, start_cluster
from cloudreg.execution.ledger import Ledger
from cloudreg.execution.memory import memory_budget_bytes
from cloudreg.execution.progress import track

if TYPE_CHECKING:
    from distributed import Client

_LOOK_EVERY_S = 5.0
# Blocks run in plain threads for this long before a local cluster of Dask is worth its start.
_SHORT_S = 30.0
_MOST_LOSSES = 3
Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine:
    """Runs one function over many blocks, locally or on a Dask cluster.

    Parameters
    ----------
    cluster
        Which Dask cluster, see `cloudreg.execution.clusters`; by default threads of this process.
    workers
        Number of threads of the local cluster; by default one a core. Another cluster has the threads that it has.
    memory
        Bytes, or text such as ``"4GB"``, that all blocks in flight together may use; by default 60 % of what is
        free here, or of what the cluster's workers may use. Stages choose their block sizes so that ``workers``
        blocks fit.

    Notes
    -----
    Without another cluster, blocks run in plain threads at first; what is left after half a minute goes to Dask, whose
    dashboard then shows it. Short jobs never pay for its start, nor many short blocks for its bookkeeping. Blocks are
    submitted a few at a time: the scheduler never holds a graph of the whole volume.
    """

    def __init__(
        self, *, cluster: str | None = None, workers: int | None = None, memory: str | int | None = None
    ) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"the number of workers must be at least 1, got {workers}")
        self.cluster = cluster
        self._plan = None if cluster is None else read_cluster(cluster)
        self._workers = workers or _cores()
        self._memory = memory
        self.memory_bytes = memory_budget_bytes(memory)
        self._client: Client | None = None
        self._owned: Any = None

    @property
    def workers(self) -> int:
        """How many blocks run at once."""
        return self._workers if self._plan is None else _threads(self._connect())

    @property
    def memory_per_block_bytes(self) -> int:
        """What one block may use so that all workers together keep to the budget."""
        if self._plan is not None and self._memory is None:
            workers = self._connect().scheduler_info(n_workers=-1)["workers"].values()
            limits = [worker["memory_limit"] // worker["nthreads"] for worker in workers if worker["memory_limit"]]
            if limits:
                return int(0.6 * min(limits))
        return self.memory_bytes // self.workers

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the cluster; one that was made for this engine ends."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._owned is not None:
            self._owned.close()
            self._owned = None

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
        before = sum(amounts) - sum(amounts[i] for i in waiting)
        with track(label, sum(amounts), unit if sizes is None else "MB", done=before) as advance:

            def finish(index: int, outcome: Result | BaseException, failed: bool) -> None:
                if failed:
                    failures[str(items[index])] = outcome  # type: ignore[assignment]
                else:
                    results[index] = outcome  # type: ignore[assignment]
                    if ledger is not None:
                        ledger.mark(str(items[index]))
                advance(amounts[index])

            if self._plan is None and self._workers == 1:
                for index in waiting:
                    finish(index, *_attempt(task, items[index]))
            else:
                if self._plan is None:
                    waiting = self._run_in_threads(task, items, waiting, finish)
                if waiting:
                    self._run_on_cluster(task, items, waiting, finish)
        for error in failures.values():
            if isinstance(error, InputError):
                raise error
        if failures:
            raise BlocksFailedError(label, failures, kept=ledger is not None) from next(iter(failures.values()))
        return results

    def _run_in_threads(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        waiting: list[int],
        finish: Callable[[int, Any, bool], None],
    ) -> list[int]:
        """Run blocks in threads of this process; return those that were not begun in time."""
        queue, until = iter(waiting), time.monotonic() + _SHORT_S
        with ThreadPoolExecutor(self._workers) as threads:

            def begin(index: int) -> Future[Any]:
                return threads.submit(_attempt, task, items[index])

            in_flight = {begin(i): i for i in islice(queue, self._workers)}
            while in_flight:
                for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                    if time.monotonic() < until:
                        in_flight |= {begin(i): i for i in islice(queue, 1)}
                    finish(in_flight.pop(future), *future.result())
        return list(queue)

    def _run_on_cluster(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        waiting: list[int],
        finish: Callable[[int, Any, bool], None],
    ) -> None:
        from distributed import as_completed
        from distributed.client import FutureCancelledError

        client = self._connect()
        # `hash=False`: the content need not be hashed, it is new each time.
        shared = client.scatter(task, broadcast=True, hash=False)
        queue, again = iter(waiting), deque[int]()
        in_flight: dict[Any, tuple[int, Any]] = {}
        losses: Counter[int] = Counter()
        completed = as_completed(loop=client.loop)
        # The workers of a queue come and go: now and then it is worth to look how many there are.
        threads, looked = _threads(client), time.monotonic()

        def fill() -> None:
            # One spare block a thread hides the time between the end of a block and the start of the next.
            wanted = max(0, 2 * threads - len(in_flight))
            for i in islice(chain(iter(lambda: again.popleft() if again else -1, -1), queue), wanted):
                future = client.submit(_attempt, shared, items[i], pure=False)
                in_flight[future] = i, shared
                completed.add(future)

        fill()
        for future in completed:
            index, held = in_flight.pop(future)
            try:
                finish(index, *future.result())
            except FutureCancelledError:
                threads, looked = _threads(client), time.monotonic()
                # It answers, so all workers that held the task have died at once: it is sent anew, but not for ever.
                losses[index] += 1
                if losses[index] > _MOST_LOSSES:
                    finish(index, RuntimeError("the workers die with it"), True)
                else:
                    again.append(index)
                if held is shared:
                    with _reaching_cluster():
                        client.wait_for_workers(1)
                        shared = client.scatter(task, broadcast=True, hash=False)
            except Exception as error:  # noqa: BLE001 - the worker died of the block, or could not begin it
                finish(index, error, True)
            future.release()
            if time.monotonic() - looked > _LOOK_EVERY_S:
                threads, looked = _threads(client), time.monotonic()
            fill()

    def _connect(self) -> Client:
        if self._client is None:
            if isinstance(self._plan, ClusterPlan):
                self._owned = start_cluster(self._plan)
            elif self._plan is None:
                self._owned = _threads_of_this_process(self._workers)
            self._client = connect(self._plan if isinstance(self._plan, str) else self._owned)
        return self._client


def _threads(client: Client) -> int:
    with _reaching_cluster():
        return max(1, sum(int(n) for n in client.nthreads().values()))


@contextmanager
def _reaching_cluster() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServerUnreachableError(
            "the connection to the Dask cluster is lost; the finished blocks are kept: run the same command again to "
            "go on"
        ) from error


def _threads_of_this_process(count: int) -> Any:
    import dask
    from distributed import LocalCluster

    dask.config.set({"distributed.worker.memory.target": False, "distributed.worker.memory.spill": False})
    return LocalCluster(
        n_workers=1,
        threads_per_worker=count,
        processes=False,
        dashboard_address=":0",
        silence_logs=50,
        memory_limit=0,
    )


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
