"""The documentation and the README: every block of Python runs, page by page from top to bottom; links lead somewhere.

A fence of Python is executed in the page's namespace, or written to a file where its first line is a comment that
names one (`# run.toml`). A fence of "console" holds commands after `$ `. All of a page happens in one empty folder.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import installed_wheel
import pytest
import torch
from PIL import Image

import lpn_fast as lf
from lpn_fast import cli

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # bench/ belongs to the checkout, not to the installed package

from bench.notebook import notebook  # noqa: E402

DOCS = Path(lf.__file__).parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.\w+)\n")
# a block that imports one of these, or names it as the engine, runs where it is
OPTIONAL = ("dask", "deepinv", "fsspec", "onnx", "onnxruntime", "onnxscript", "pandas", "pyspark", "ray", "tifffile")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str


def blocks(page):
    text = page.read_text(encoding="utf-8")
    return [Block(page.name, text[: match.start(2)].count("\n"), match[1], match[2]) for match in FENCE.finditer(text)]


def missing(code):
    """Optional modules that a block imports and that are not here."""
    words = set(re.findall(r"\w+", " ".join(re.findall(r"^(?:import|from) .*|--engine \w+", code, re.MULTILINE))))
    return [name for name in OPTIONAL if name in words and importlib.util.find_spec(name) is None]


def run_python(block, namespace):
    if name := FILE.match(block.code):
        Path(name[1]).write_text(block.code)
        return
    # blank lines in front, so that a traceback names the line of the page
    exec(compile("\n" * block.line + block.code, str(DOCS / block.page), "exec"), namespace)


def run_command(line):
    program, *arguments = shlex.split(line, comments=True)
    if program == "lpn-fast":
        assert cli.main(arguments) == 0, line
    elif program == "torchrun":
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        pytest.fail(f"no way to run {program!r} is known")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore")
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, skipped, threads = {"__name__": "page"}, [], torch.get_num_threads()
    try:
        for block in blocks(page):
            if absent := missing(block.code):
                skipped.append(f"{page.name} line {block.line}: {', '.join(absent)} not installed")
            elif block.language == "python":
                run_python(block, namespace)
            elif block.language == "toml":
                run_python(block, namespace)
                assert FILE.match(block.code), "a configuration begins with the name of its file"
            else:
                assert block.language == "console", f"{page.name} line {block.line}: say what language this is"
                lines = block.code.splitlines()
                assert all(line.startswith("$ ") for line in lines), "commands begin with $, and show no output"
                for line in lines:
                    run_command(line[2:])
    finally:
        torch.set_num_threads(threads)
    if skipped:
        pytest.skip("all but: " + "; ".join(skipped))


@pytest.mark.filterwarnings("ignore")
def test_the_readme_runs(tmp_path, monkeypatch):
    """Blocks and commands, as `make wheel` runs them with the wheel and without a compiler."""
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    blocks, lines = installed_wheel.python_blocks(text), installed_wheel.commands(text)
    assert len(blocks) >= 2 and {line[1] for line in lines} == {"denoise", "reconstruct", "train"}
    namespace, threads = {"__name__": "page"}, torch.get_num_threads()
    for block in blocks:
        exec(block, namespace)
    installed_wheel.photos(Path("photos"))
    try:
        for line in lines:
            run_command(shlex.join(line))
    finally:
        torch.set_num_threads(threads)
    assert len(list(Path("clean").glob("*.png"))) == len(list(Path("sharp").glob("*.png"))) == 2
    assert type(lf.load("run/model.safetensors")).__name__ == "FrameLPN"


def test_the_links_of_the_readme_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), f"README links to {target}"
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
    assert len(text.splitlines()) < 200


def test_the_commands_of_the_readme_exist():
    commands = {line.split()[1] for line in re.findall(r"^lpn-fast \w+.*", README.read_text(), re.MULTILINE)}
    listed = re.search(r"other commands: (.*?)\. The", README.read_text(), re.DOTALL)[1]
    for name in commands | set(re.findall(r"`([\w-]+)`", listed)):
        assert cli.main([name, "--help"]) == 0, name


def test_the_pages_are_those_of_the_site_and_their_links_lead_somewhere():
    listed = re.findall(r"- (?:\w+: )?([\w-]+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES]
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert (DOCS / target).is_file(), f"{page.name} links to {target}"
    used = {target for page in PAGES for target in re.findall(r"\]\((figures/[^)]+)", page.read_text())}
    assert used == {f"figures/{path.name}" for path in (DOCS / "figures").iterdir()}


def test_the_screenshots_are_of_pages_of_the_site():
    """What bench.pages wrote of pages since renamed or left out would not be noticed otherwise."""
    folder = ROOT / "bench" / "results" / "pages"
    if not folder.is_dir():
        pytest.skip("the installed package has no bench/results")
    taken = {path.stem: Image.open(path).width for path in folder.glob("docs-*.png")}
    assert len(taken) >= 8 and max(path.stat().st_size for path in folder.iterdir()) < 300_000
    for name, width in taken.items():
        page, _, device = name.removeprefix("docs-").rpartition("-")
        assert (DOCS / f"{page}.md").is_file() and width == {"desk": 1280, "telephone": 390}[device], name


def test_every_public_name_has_a_place_in_the_api_page():
    """Modules of the page show all they export; the two that list names list them all."""
    page = (DOCS / "api.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"members: \[(.*)\]", page))))
    modules = re.findall(r"::: (lpn_fast[\w.]*)", page)
    for name in lf.__all__:
        module = f"lpn_fast.{name}"
        assert name in named or module in modules or name == "ProximalMatchingLoss", name


def test_a_page_becomes_a_notebook_with_the_same_code():
    page = DOCS / "quickstart.md"
    made = notebook(page.read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"]
    own = [block.code.strip("\n") for block in blocks(page)]
    assert [text.replace("!lpn-fast", "$ lpn-fast") for text in code] == own
    assert all(text.startswith("!") for text in code if "lpn-fast denoise" in text)
    assert made["cells"][0]["source"][0].startswith("# Quick start") and made["nbformat"] == 4
    assert notebook("```toml\n# run.toml\na = 1\n```\n")["cells"][0]["source"][0] == "%%writefile run.toml\n"


@pytest.mark.slow
def test_the_quick_start_runs_as_a_notebook(tmp_path, monkeypatch):
    """`make docs` writes it; Jupyter's own client runs it."""
    reason = "nbclient and ipykernel are not installed"
    nbclient, nbformat = (pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason=reason)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # for !lpn-fast
    page = notebook((DOCS / "quickstart.md").read_text(encoding="utf-8"))
    made = nbformat.reads(json.dumps(page), as_version=4)
    nbformat.validate(made)
    ran = nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in ran.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "error" for output in outputs)
    assert len(list((tmp_path / "clean").glob("*.png"))) == 3  # what a command of a cell wrote


def test_a_wrong_block_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        run_python(Block("a.md", 3, "python", "assert 1 == 2"), {})
    with contextlib.suppress(SystemExit), pytest.raises(AssertionError):
        run_command("lpn-fast denoise nowhere -o out --sigma 0.1")
    (tmp_path / "a.md").write_text("text\n\n```python\nx = 1\n```\n\n```console\n$ lpn-fast info\n```\n")
    assert [(b.language, b.line, b.code) for b in blocks(tmp_path / "a.md")] == [
        ("python", 3, "x = 1\n"),
        ("console", 7, "$ lpn-fast info\n"),
    ]
