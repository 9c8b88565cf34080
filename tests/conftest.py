"""What every test shares: one thread a library, the real data sets, and where the repository is."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data():
    """The folder of real data sets; a test that needs it is skipped where there is none."""
    if not DATA.is_dir():
        pytest.skip("no folder of real data sets beside the repository")
    return DATA
