"""The documentation as a site: built without a warning, whole without a network, readable on a desk and on a telephone.

Needs the environment that `make docs` makes, and the browser of tests/browser.py for what is seen.
"""

import functools
import http.server
import re
import subprocess
import threading
from pathlib import Path

import pytest

import lpn_fast as lf

ROOT = Path(lf.__file__).parents[1]
MKDOCS = ROOT / "build" / "docs-env" / "bin" / "mkdocs"
PAGES = sorted(path.stem for path in (ROOT / "lpn_fast" / "docs").glob("*.md"))
WIDTHS = (1280, 390)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MKDOCS.exists(), reason="mkdocs-material is not installed: make docs does it"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [MKDOCS, "build", "--strict", "-q", "-f", ROOT / "lpn_fast" / "mkdocs.yml", "-d", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """The site, served."""
    handler = functools.partial(_Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_nothing_is_fetched_from_elsewhere(site):
    for page in PAGES:
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|iframe)[^>]*src=\"?https?:|<link[^>]*stylesheet[^>]*https?:", text) == [], (
            page
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_code_formulas_and_pictures_fit(site, browser, width):
    """At full view or by a scroll bar of their own; and pages do not scroll sideways."""
    too_wide = {}
    for page in PAGES:
        browser.open(site / f"{page}.html", width)
        sideways = browser.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        if found := browser.overflowing() + ["the page"] * sideways:
            too_wide[page] = found
        assert browser.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == [], page
    assert too_wide == {}


def test_a_table_that_does_not_fit_is_noticed(site, browser):
    browser.open(site / "compare.html", 1280)
    browser.evaluate("document.querySelector('td').style.paddingRight = '900px'")
    browser.evaluate("document.querySelector('.md-typeset__scrollwrap').style.overflow = 'hidden'")
    assert any("table" in selector for selector in browser.overflowing())


def test_code_is_coloured_and_formulas_are_drawn(site, browser):
    browser.open(site / "concepts.html")
    colours = "new Set([...document.querySelectorAll('pre span')].map(e => getComputedStyle(e).color)).size"
    assert browser.evaluate(colours) >= 4
    formulas = "[...document.querySelectorAll('math')].map(e => e.getBoundingClientRect().height > 15)"
    assert browser.evaluate(formulas) == [True] * 4
    assert browser.evaluate("document.querySelector('article').innerText.includes('$')") is False


def test_search_finds_a_term(address, browser):
    browser.open(f"{address}/index.html")
    browser.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
    browser.evaluate(
        "{const q = document.querySelector('[data-md-component=search-query]');"
        " q.value = 'preimage'; q.dispatchEvent(new Event('keyup', {bubbles: true})); 0}"
    )
    found = "document.querySelector('[data-md-component=search-result]').innerText"
    browser.wait_for(f"/Glossary|prior/i.test({found})")


def test_the_api_begins_with_what_users_call(site, browser):
    browser.open(site / "api.html")
    names = browser.evaluate("[...document.querySelectorAll('h3.doc-heading')].slice(0, 8).map(e => e.id)")
    called = ["reconstruct", "estimate_noise", "pretrained", "list_pretrained", "load", "save", "verify", "prior"]
    assert [name.rpartition(".")[2] for name in names] == called
