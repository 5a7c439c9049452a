"""Every page in a real browser: no sideways scroll, no overlap with the edge, and axe-core finds no fault, light and dark."""

from pathlib import Path

import pytest
from page_samples import write_pages

NAMES = ["report", "lists", "inspect", "drift", "compare", "explain", "pretrain", "tune"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, browser):
    return {language: write_pages(tmp_path_factory.mktemp(language), language) for language in ("en", "zh")}


@pytest.mark.parametrize("name", NAMES)
def test_at_both_widths_and_in_both_schemes(pages, browser, name):
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js")
    for width, scheme, language in ((1280, "light", "en"), (390, "dark", "zh"), (390, "light", "en"), (1280, "dark", "zh")):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page, said = context.new_page(), []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.goto(pages[language][name].as_uri())
        assert said == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.add_script_tag(path=str(axe))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        faults = [(fault["id"], [node["html"][:120] for node in fault["nodes"][:3]]) for fault in found]
        assert faults == [], (width, scheme, language)
        context.close()
