"""The peers' environments: each library with the very scikit-learn and xgboost of the model."""

from importlib.metadata import version
from pathlib import Path

import processes

PEERS = {
    "fastapi": ["fastapi", "uvicorn"],
    "vetiver": ["vetiver==0.2.6", "uvicorn"],
    "mlflow": ["mlflow==3.17.2", "uvicorn", "fastapi"],
}


def environment(peer: str, folder: Path) -> Path:
    """The Python of the environment of `peer` in `folder`, made unless it is there."""
    same = [f"{name}=={version(name)}" for name in ("scikit-learn", "pandas", "numpy", "joblib")]
    same.append(f"xgboost-cpu=={version('xgboost')}")
    return processes.environment(folder / peer, [*PEERS[peer], *same])
