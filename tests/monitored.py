"""A small project of the synthetic demo with a release, to be monitored by months."""

import json
from pathlib import Path

from released import demo_lines

from prodml.gates.candidate import make_candidate
from prodml.ini import parse_settings
from prodml.release.store import seal
from prodml.verdict import GateResult, judge

INI = demo_lines("2024-07-01")
INI += """[limits]
required = drift
[drift]
max_shift = 0.3
max_prediction_shift = 0.3
[performance]
max_error_increase = 0.1
max_calibration_shift = 0.1
[fairness]
max_selection_rate_difference = 0.3
[monitor]
predictions = demo
period = 1MS
looks = 12
"""
PASSED = GateResult("drift", (judge("shift", 0.0, 0.0, 0.1, 0.3, "max", 900),))


def monitored(root, more=""):
    """(settings, release) of a project in `root`; `more` is added to its `[monitor]` section."""
    path = Path(root) / "settings.ini"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(INI + more)
    settings = parse_settings(path.read_text(), path)
    candidate = make_candidate(settings.folder / "candidates" / "one", settings)
    return settings, seal(candidate, [], [PASSED], settings, "run-1")


def told(process):
    """The JSON that a command answered with."""
    assert process.stdout.strip(), process.stderr
    return json.loads(process.stdout)
