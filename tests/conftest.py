"""Settings of all tests."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.helpers")

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)  # the same examples everywhere
settings.load_profile("steady")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: end-to-end tests wait for servers much of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture
def raw_data() -> Path:
    """The folder of raw data sets; tests that need it are skipped where there is none."""
    folder = os.environ.get("TRL_RAW_DATA")
    if not folder:
        pytest.skip("needs raw data sets: set TRL_RAW_DATA to their folder")
    return Path(folder)
