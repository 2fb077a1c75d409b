"""`python -m bench.notebook PAGE.md OUT.ipynb`: a page of the documentation as a notebook; `run` runs a page's cells.

Text becomes Markdown cells, fences of Python code cells, commands cells that begin with `!`, and a file that a fence
names in its first line is written by `%%writefile`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.\w+)\n")


def cells(text: str) -> list[dict]:
    """The cells of a page, in order."""
    found, end = [], 0
    for fence in FENCE.finditer(text):
        found += [_cell("markdown", text[end : fence.start()]), _cell("code", _code(fence[1], fence[2]))]
        end = fence.end()
    return [cell for cell in [*found, _cell("markdown", text[end:])] if cell["source"]]


def _code(language: str, code: str) -> str:
    if name := FILE.match(code):
        return f"%%writefile {name[1]}\n{code}"
    return re.sub(r"^\$ ", "!", code, flags=re.MULTILINE) if language == "console" else code


def _cell(kind: str, text: str) -> dict:
    cell = {"cell_type": kind, "metadata": {}, "source": text.strip("\n").splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook(text: str) -> dict:
    """The page in Jupyter's format 4."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells(text), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def run(text: str) -> dict:
    """Run the cells of a page in this process and folder, as Jupyter would; the names that they leave."""
    names: dict = {"__name__": "page"}
    for cell in cells(text):
        code = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            continue
        if file := re.match(r"%%writefile (\S+)\n", code):
            Path(file[1]).write_text(code[file.end() :])
        elif code.startswith("!"):
            for line in code.splitlines():
                subprocess.run(line.removeprefix("!"), shell=True, check=True)
        else:
            exec(code, names)
    return names


def main(page: str, out: str) -> None:
    """Read the page, write the notebook."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(notebook(Path(page).read_text(encoding="utf-8")), indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
