"""What every test may use."""

import os
from pathlib import Path

import pytest

from cloudreg.execution import Engine


@pytest.fixture
def test_data() -> Path:
    """The folder of real volumes; skips where it is absent."""
    folder = Path(os.environ.get("CLOUDREG_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}: set CLOUDREG_TEST_DATA")
    return folder


@pytest.fixture
def engine():
    """Two threads and a fixed memory budget."""
    with Engine(workers=2, memory="1GB") as running:
        yield running
