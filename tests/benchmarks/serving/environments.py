"""The peers' environments: each library with the very scikit-learn and xgboost of the model."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PEERS = {
    "fastapi": ["fastapi", "uvicorn"],
    "vetiver": ["vetiver==0.2.6", "uvicorn"],
    "mlflow": ["mlflow==3.17.2", "uvicorn", "fastapi"],
}


def environment(peer: str, folder: Path) -> Path:
    """The Python of the environment of `peer` in `folder`, made unless it is there."""
    place = folder / peer
    python = place / "bin" / "python"
    if (place / "ready").exists():
        return python
    same = [f"{name}=={version(name)}" for name in ("scikit-learn", "pandas", "numpy", "joblib")]
    same.append(f"xgboost-cpu=={version('xgboost')}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[peer], *same], check=True)
    (place / "ready").touch()
    return python
