"""A filled `[card]`, for the tests that need one."""

from prodml.explain.blanks import ASKED

SAID = {key: f"What the test says of {key}, in words of its own." for key in ASKED}


def filled(text):
    """The settings file `text` with every blank line of its `[card]` answered."""
    starts = {f"{key:<12} =": f"{key} = {said}" for key, said in SAID.items()}
    lines = [starts.get(line.partition("  ;")[0].rstrip(), line) for line in text.splitlines()]
    return "\n".join(lines)
