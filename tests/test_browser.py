"""The browser that looks at pages: what it calls too wide is too wide, and what it draws is the page."""

import pytest
from PIL import Image

WIDE = "<div style='width: 600px; height: 20px'></div>"
TABLE = f"<table id=t><tr><td>{WIDE}</td></tr></table>"


def overflowing(browser, tmp_path, body, width=390, style=""):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{style}</style><body>{body}", encoding="utf-8")
    browser.open(page, width)
    return browser.overflowing()


@pytest.mark.parametrize(
    "body, found",
    [
        (TABLE, ["#t"]),
        (f"<div style='overflow-x: auto'>{TABLE}</div>", []),
        (f"<div style='overflow: hidden'>{TABLE}</div>", ["#t"]),  # cut off
        (f"<div style='width: 700px'><div style='overflow-x: auto'>{TABLE}</div></div>", ["#t"]),  # bar out of sight
        (f"<div style='width: 200px'>{TABLE.replace('600', '300')}</div>", ["#t"]),  # fits the window, not its box
        (f"<pre id=p>{'x' * 200}</pre>", ["#p"]),
        (f"<pre id=p style='overflow: auto'>{'x' * 200}</pre>", []),
        (f"<p>a <code>{'x' * 200}</code>", ["p > code"]),
        (f"<p>a <code style='overflow-wrap: anywhere'>{'x' * 200}</code>", []),
        ("<p><svg id=s width=500 height=9></svg>", ["#s"]),
        ("<p><svg style='max-width: 100%' width=500 height=9></svg>", []),
        (f"<div style='position: absolute; left: -900px'>{TABLE}</div>", []),  # a menu out of sight
        (f"<div style='display: none'>{TABLE}</div>", []),
        (f"<div style='opacity: 0'>{TABLE}</div>", []),
        # what reaches into a margin is not too wide, but what is cut off there is
        ("<div style='padding: 20px'><div style='margin: 0 -20px'><pre id=p>x</pre></div></div>", []),
        (
            "<div style='overflow: hidden; margin: 20px'><div style='margin: 0 -20px'><pre id=p>x</pre></div></div>",
            ["#p"],
        ),
    ],
)
def test_too_wide_is_what_cannot_be_reached(browser, tmp_path, body, found):
    assert overflowing(browser, tmp_path, body) == found


def test_what_fits_a_desk_need_not_fit_a_pocket(browser, tmp_path):
    assert overflowing(browser, tmp_path, TABLE, 1280) == []
    assert overflowing(browser, tmp_path, TABLE, 390) == ["#t"]


def test_selectors_find_the_element(browser, tmp_path):
    body = f"<section id=a><p>x</p><pre>{'x' * 9}</pre><pre>{'x' * 200}</pre></section>"
    (found,) = overflowing(browser, tmp_path, body)
    assert browser.evaluate(f"document.querySelector('{found}').textContent.length") == 200


def test_screenshots_show_the_whole_page(browser, tmp_path):
    body = "<div style='background: red; height: 2000px'></div><div style='background: blue; height: 100px'></div>"
    overflowing(browser, tmp_path, body, 400, "body { margin: 0 }")
    browser.screenshot(tmp_path / "page.png")
    browser.screenshot(tmp_path / "window.png", full_page=False)
    page, window = (Image.open(tmp_path / name).convert("RGB") for name in ("page.png", "window.png"))
    assert page.size == (400, 2100) and window.size == (400, 900)
    assert page.getpixel((200, 10)) == (255, 0, 0) and page.getpixel((200, 2090)) == (0, 0, 255)


def test_errors_are_those_of_the_page(browser, tmp_path):
    overflowing(browser, tmp_path, "")
    with pytest.raises(RuntimeError, match="ReferenceError"):
        browser.evaluate("no_such_name")
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        browser.open(tmp_path / "nowhere.html")
    with pytest.raises(TimeoutError, match="not true"):
        browser.wait_for("1 > 2", seconds=0.1)
    assert browser.evaluate("[1, 'a', null, undefined]") == [1, "a", None, None]
