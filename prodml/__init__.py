"""From a notebook to a model that could not have shipped without passing."""

__version__ = "0.1.0"

import os as _os

# The libraries below report home unless told not to, and listen only before their import.
for _name, _value in {
    "WHYLOGS_NO_ANALYTICS": "True",
    "BENTOML_DO_NOT_TRACK": "True",
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    _os.environ.setdefault(_name, _value)
