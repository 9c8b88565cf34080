"""A small project of the synthetic demo with two releases, to be explored."""

import sys
from dataclasses import replace
from pathlib import Path

from released import demo_lines

from prodml.explain.making import save_explanation
from prodml.gates.candidate import make_candidate
from prodml.ini import parse_settings
from prodml.release.registry import open_registry
from prodml.release.store import seal
from prodml.verdict import GateResult, judge

INI = demo_lines("2024-09-01", "linear, xgboost", sensitive="sex, group")
INI += """[limits]
required = fairness
[fairness]
max_selection_rate_difference = 0.20
max_true_positive_rate_difference = 0.25
[drift]
max_shift = 0.1
max_prediction_shift = 0.3
[compare]
goal = no_worse
margin = 0.05
[explain]
immutable = age
[monitor]
period = 1MS
looks = 24
"""
PASSED = GateResult("fairness", (judge("selection_rate_difference", 0, 0, 0.1, 0.3, "max", 900),))


def explored(root):
    """(settings, champion, challenger) of a project in `root`, the champion promoted."""
    path = Path(root) / "settings.ini"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(INI)
    settings = parse_settings(INI, path)
    releases = []
    for kind in ("linear", "xgboost"):
        asked = replace(settings, model=replace(settings.model, candidates=(kind,)))
        folder = settings.folder / "candidates" / kind
        candidate = make_candidate(folder, asked, explain=save_explanation)
        releases.append(seal(candidate, [], [PASSED], settings, f"run-{kind}"))
    registry = open_registry(settings)
    registry.add(releases[1])
    registry.promote(releases[0].name, author="Ada", reason="the first release of the demo")
    return settings, *releases


if __name__ == "__main__":
    print(explored(sys.argv[1])[1:])
