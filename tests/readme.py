"""README.md as it follows from nbs/index.ipynb; run as a script, writes it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def markdown() -> str:
    """The index notebook as Markdown: prose, code and text output, hidden cells left out."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(ROOT / "nbs/index.ipynb", 4)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.cells = [cell for cell in notebook.cells if "#| hide" not in cell.source]
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    return body.strip().replace("](images/", "](nbs/images/") + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(markdown(), encoding="utf-8")
