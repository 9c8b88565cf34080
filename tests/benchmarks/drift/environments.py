"""The peers, each in a virtual environment of its own, with versions that import and work together.

python tests/benchmarks/drift/environments.py FOLDER
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import processes

PEERS = {
    "evidently": ["evidently==0.7.23", "pandas==2.3.3", "numpy<2.4"],
    "nannyml": ["nannyml==0.13.1", "statsmodels", "setuptools<81"],
    "whylogs": ["whylogs[viz]==1.6.4", "numpy<2", "pandas<2.3", "scipy", "ipython", "pybars3"],
    "alibi": ["alibi-detect==0.13.0", "pandas<2.3"],
    "deepchecks": [
        "deepchecks==0.19.1",
        "numpy<2",
        "scikit-learn==1.6.1",
        "pandas==2.3.3",
        "setuptools<81",
    ],
}


def environment(peer: str, folder: Path) -> Path:
    """The Python of the environment of `peer` in `folder`, made unless it is there."""
    return processes.environment(folder / peer, PEERS[peer])


if __name__ == "__main__":
    for name in PEERS:
        try:
            print(name, environment(name, Path(sys.argv[1])), flush=True)
        except subprocess.CalledProcessError as error:
            print(name, "could not be made:", error, flush=True)
