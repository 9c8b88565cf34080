"""The notebooks' lessons, run once more against the modules as they ship."""

import importlib

import pytest
from test_notebooks import LIBRARY, cells, ids, module


@pytest.mark.parametrize("path", LIBRARY, **ids)
def test_lessons_hold_for_the_shipped_module(path, monkeypatch, tmp_path):
    from execnb.shell import CaptureShell

    shell = CaptureShell(path.parent)
    shell.user_ns.update(vars(importlib.import_module("prodml." + module(path))))
    for source, _ in cells(path, "code"):
        if source.startswith(("#| export", "#| default_exp", "#| slow", "#| eval: false")):
            continue
        shell.run(source)
        assert shell.exc is None, f"{source}\n\n{shell.exc!r}"
