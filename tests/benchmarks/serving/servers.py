"""The servers that are compared, each in the environment that its library wants.

    python servers.py NAME FOLDER PORT

FOLDER holds `pipeline.joblib` and `made.json`. Every server answers in its own form.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(BENTOML_DO_NOT_TRACK="True", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1")
FOLDER = Path(os.environ.get("BENCH_FOLDER", "."))


def loaded():
    """The pipeline, and the function that makes its table of JSON rows."""
    import joblib
    import pandas as pd

    sys.path.insert(0, str(FOLDER))
    told = json.loads((FOLDER / "made.json").read_text())
    kinds = dict(zip(told["features"], told["numeric"], strict=True))

    def table(rows):
        frame = pd.DataFrame(rows, columns=told["features"])
        for name, numeric in kinds.items():
            frame[name] = frame[name].astype("float32") if numeric else frame[name].fillna("")
        return frame

    return joblib.load(FOLDER / "pipeline.joblib"), table


def fastapi(port):
    """The service that everybody writes: FastAPI, a data frame, the pipeline."""
    import uvicorn
    from fastapi import FastAPI

    model, table = loaded()
    app = FastAPI()

    @app.post("/predict")
    def predict(rows: list[dict]):
        return {"predictions": model.predict_proba(table(rows))[:, 1].tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def vetiver(port):
    """vetiver's own application around the pipeline."""
    import uvicorn
    from vetiver import VetiverAPI, VetiverModel

    model, table = loaded()
    rows = json.loads((FOLDER / "rows.json").read_text())
    wrapped = VetiverModel(model, model_name="bench", prototype_data=table(rows[:50]))
    wrapped.model.predict = lambda frame: model.predict_proba(table(frame))[:, 1]
    app = VetiverAPI(wrapped, check_prototype=True).app
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def mlflow(port):
    """`mlflow models serve` of the pipeline, in this environment."""
    import mlflow.pyfunc
    import mlflow.sklearn

    place = FOLDER / "mlflow-model"
    if not place.exists():
        model, _ = loaded()
        mlflow.sklearn.save_model(
            model, place, pyfunc_predict_fn="predict_proba", serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )  # fmt: skip
    bin = Path(sys.executable).parent
    os.environ["PATH"] = f"{bin}:{os.environ['PATH']}"  # it starts `uvicorn` by name
    command = [bin / "mlflow", "models", "serve", "-m", place, "-h", "127.0.0.1"]
    command += ["-p", str(port), "--env-manager", "local", "--workers", "1"]
    os.execv(command[0], list(map(str, command)))


if __name__ == "__main__":
    FOLDER = Path(sys.argv[2])
    {"fastapi": fastapi, "vetiver": vetiver, "mlflow": mlflow}[sys.argv[1]](int(sys.argv[3]))
