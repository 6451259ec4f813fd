"""The engine: every block once, in any number of threads, and no failure is lost."""

import threading
import time

import pytest

from cloudreg.errors import BlocksFailedError, InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.execution import engine as engine_module


def double(x):
    return 2 * x


def fail_at_three(x):
    if x == 3:
        raise ZeroDivisionError("three")
    return x


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    with Engine(workers=workers, memory="1GB") as engine:
        assert engine.run(double, range(50), label="double") == [2 * i for i in range(50)]


def test_what_threads_do_not_finish_in_time_goes_to_a_cluster(monkeypatch):
    names = []

    def name(x):
        names.append(threading.current_thread().name)
        time.sleep(0.02)
        return -x

    monkeypatch.setattr(engine_module, "_SHORT_S", 0.05)
    with Engine(workers=2, memory="1GB") as engine:
        assert engine.run(name, range(20), label="name") == [-i for i in range(20)]
    here = [n.startswith("ThreadPoolExecutor") for n in names]
    assert here[0] and not here[-1] and len(names) == 20
    names.clear()
    monkeypatch.setattr(engine_module, "_SHORT_S", 60)
    with Engine(workers=2, memory="1GB") as engine:
        engine.run(name, range(20), label="name")
    assert all(n.startswith("ThreadPoolExecutor") for n in names)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_block_fails_the_run_after_the_others_are_done(workers, tmp_path):
    ledger = Ledger(tmp_path / "done")
    with Engine(workers=workers, memory="1GB") as engine:
        with pytest.raises(BlocksFailedError, match=r"stage: 1 block\(s\) failed, first 3: .*three.*are kept"):
            engine.run(fail_at_three, range(8), label="stage", ledger=ledger)
        assert len(ledger) == 7 and "3" not in ledger
        again = engine.run(double, range(8), label="stage", ledger=ledger)
    assert again == [None, None, None, 6, None, None, None, None]


def test_without_a_ledger_nothing_is_said_to_be_kept(engine):
    with pytest.raises(BlocksFailedError, match=r"three.*nothing is kept"):
        engine.run(fail_at_three, range(8), label="stage")


def test_bad_input_in_a_block_is_raised_as_it_is(engine):
    def complain(x):
        raise InputError("one line")

    with pytest.raises(InputError, match=r"^one line$"):
        engine.run(complain, range(3), label="stage")


def test_no_more_blocks_run_at_once_than_there_are_workers():
    started, lock, release = [], threading.Lock(), threading.Event()

    def wait(x):
        with lock:
            started.append(x)
        release.wait(10)
        return x

    with Engine(workers=2, memory="1GB") as engine:
        thread = threading.Thread(target=engine.run, args=(wait, range(20)), kwargs={"label": "wait"})
        thread.start()
        try:
            while len(started) < 2:
                thread.join(0.01)
            thread.join(0.2)
            assert len(started) == 2
        finally:
            release.set()
            thread.join()
    assert sorted(started) == list(range(20))


@pytest.mark.parametrize(("options", "message"), [({"workers": 0}, "at least 1"), ({"cluster": "here"}, "tcp://")])
def test_impossible_engines_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Engine(**options)


def test_the_budget_is_shared_by_the_workers():
    assert Engine(workers=4, memory="1GB").memory_per_block_bytes == 250_000_000
