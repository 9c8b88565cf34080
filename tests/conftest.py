"""What every test shares: one thread a library, the same examples, and where the repository is."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
# The same examples in each run, on a slow machine too; others by --hypothesis-profile=search.
calm = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
patient = {"deadline": None, "suppress_health_check": calm}
settings.register_profile("search", **patient)
settings.register_profile("same", **patient, derandomize=True)
settings.load_profile("same")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """How many share the whole suite; 0 for tests that are named, which start sooner in one."""
    named = any(Path(one.partition("::")[0]).is_file() for one in config.args)
    return 0 if named or config.option.keyword else max(2, min(4, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def data():
    """The folder of real data sets; a test that needs it is skipped where there is none."""
    if not DATA.is_dir():
        pytest.skip("no folder of real data sets beside the repository")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def bentoml_home(tmp_path_factory):
    """The folder where BentoML keeps what it makes, which no other process of tests uses."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("bentoml_home")
        patch.setenv("BENTOML_HOME", str(home))
        yield home


def pytest_pyfunc_call(pyfuncitem):
    """Whether a test that forks has passed in a process of its own: a worker has other threads.

    A copy of a process holds the locks that its other threads held, and nobody to let them go.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ or not pyfuncitem.get_closest_marker("forks"):
        return None
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    with tempfile.TemporaryDirectory() as place:
        line = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
        line += [f"--basetemp={place}/base", pyfuncitem.nodeid]
        folder = pyfuncitem.config.rootpath
        ended = subprocess.run(line, cwd=folder, env=own, capture_output=True, text=True)
    assert ended.returncode == 0 and "1 passed" in ended.stdout, ended.stdout + ended.stderr
    return True
