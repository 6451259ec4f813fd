"""The ledger: what it says is done is done."""

import threading

import pytest

from cloudreg.errors import InputError
from cloudreg.execution import Ledger


def test_marks_survive_the_process(tmp_path):
    Ledger(tmp_path / "folder" / "done").mark("a")
    Ledger(tmp_path / "folder" / "done").mark("b c")
    read = Ledger(tmp_path / "folder" / "done")
    assert "a" in read and "b c" in read and "c" not in read and len(read) == 2


def test_a_line_cut_short_by_a_kill_does_not_count_nor_spoil_the_next(tmp_path):
    path = tmp_path / "done"
    path.write_text("0-64\n64-12")
    ledger = Ledger(path)
    assert "0-64" in ledger and "64-12" not in ledger
    ledger.mark("64-128")
    again = Ledger(path)
    assert "64-128" in again and "0-64" in again


def test_threads_do_not_mix_lines(tmp_path):
    ledger = Ledger(tmp_path / "done")
    threads = [threading.Thread(target=lambda k=k: [ledger.mark(f"{k}-{i}") for i in range(20)]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Ledger(tmp_path / "done")) == 80


@pytest.mark.parametrize("begin", ["clear", "mark"])
def test_what_another_job_has_done_is_forgotten_when_this_one_begins(tmp_path, begin):
    path = tmp_path / "done"
    Ledger(path, job="one").mark("a")
    other = Ledger(path, job="other")
    assert len(other) == 0
    assert "a" in Ledger(path, job="one"), "the other job has not begun"
    getattr(other, begin)(*(["b"] if begin == "mark" else []))
    assert len(Ledger(path, job="one")) == 0, "the other job may have written over it since"
    assert "a" not in Ledger(path, job="other")


def test_a_first_line_cut_short_by_a_kill_is_of_no_job(tmp_path):
    path = tmp_path / "done"
    path.write_text("job on")
    ledger = Ledger(path, job="one")
    ledger.mark("a")
    ledger.mark("b")
    again = Ledger(path, job="one")
    assert len(again) == 2 and "a" in again and "b" in again


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"could not note in .*file/done what is done \(File exists\): make room or"):
        Ledger(tmp_path / "file" / "done").mark("a")
