"""Memory and disk: sizes are read as people write them, and too little is said beforehand."""

import shutil

import psutil
import pytest

from cloudreg.errors import InputError
from cloudreg.execution import memory_budget_bytes, require_free_space


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512MiB", 512 * 2**20), ("1.5 g", 1_500_000_000), ("100000000", 10**8), (10**9, 10**9)],
)
def test_sizes_are_read_as_written(text, size):
    assert memory_budget_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "4XB", "-1GB", "1.2.3GB", ".GB"])
def test_text_that_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="memory size"):
        memory_budget_bytes(text)


def test_too_little_memory_is_refused():
    with pytest.raises(InputError, match="64MB"):
        memory_budget_bytes("1MB")


def test_the_default_is_part_of_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDREG_CGROUP", str(tmp_path))
    free = psutil.virtual_memory().available
    assert 0.4 * free < memory_budget_bytes() < 0.8 * free
    (tmp_path / "memory.max").write_text("300000000\n")
    (tmp_path / "memory.current").write_text("100000000\n")
    assert memory_budget_bytes() == 120_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_budget_bytes() > 120_000_000


def test_a_full_disk_is_said_before_writing(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    require_free_space(tmp_path / "not" / "yet", free // 2, "a volume")
    with pytest.raises(InputError, match=r"a volume needs .* GB and the disk of .* has .* GB free"):
        require_free_space(tmp_path / "not" / "yet", 2 * free, "a volume")
