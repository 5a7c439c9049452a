"""The page in a real browser: lists, bids that move ranks, clicks, reasons; no error, no foreign request."""

import os
import shutil
import signal

import pytest
from served import call, make_bundle, start

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("page")
    make_bundle(made)
    return made


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), pytest.param(390, 844, marks=pytest.mark.browser_slow)])
def test_the_page_ranks_explains_and_changes(folder, tmp_path, width, height):
    server, address = start(folder, tmp_path / "store.sqlite")
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": width, "height": height}, locale="en-US")
            faults, foreign = [], []
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on(
                "request",
                lambda request: foreign.append(request.url) if not request.url.startswith((address, "data:")) else None,
            )
            page.goto(address)
            page.wait_for_selector("#list li")
            assert page.locator("#list li").count() == 5
            last = page.locator("#list li").last
            moved = last.get_attribute("data-ad")
            last.locator(".bid input").fill("40")
            last.locator(".bid button").click()
            page.wait_for_selector(f'#list li:first-child[data-ad="{moved}"]')
            first = page.locator("#list li").first
            assert first.locator(".bid input").input_value() == "40"
            before = first.locator("h2").text_content()
            first.locator("h2").fill("guitar guitar concert")
            with page.expect_response("**/v1/try"):
                first.locator("h2").press("Enter")
            page.wait_for_selector("#message:empty", state="attached")
            assert "guitar guitar concert" in page.locator("#list h2").all_text_contents()
            assert before in page.locator(f'#list li[data-ad="{moved}"] .now').text_content()  # both headlines, side by side
            assert call(address, f"/v1/ads/{moved}")["title"] == before  # for the asking alone
            for _ in range(2):
                with page.expect_response("**/v1/*"):
                    page.click("#undo")
                page.wait_for_selector("#message:empty", state="attached")
            assert page.locator("#trial").is_hidden() and page.locator("#list li .now:visible").count() == 0
            assert page.locator("#list li").last.get_attribute("data-ad") == moved
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if os.environ.get("ADREC_SCREENSHOTS"):
                page.screenshot(path=f"{os.environ['ADREC_SCREENSHOTS']}/lists-{width}.png", full_page=True)
            first = page.locator("#list li").first
            first.locator(".why").click()
            page.wait_for_selector("#list li .part")
            assert first.locator(".part").count() >= 1
            first.locator(".click").click()
            page.wait_for_selector("#message:has-text('Recorded')")
            page.fill("#user", "stranger")
            page.select_option("#scenario", "search")
            page.fill("#query", "guitar")
            page.click("#ask > button")
            page.wait_for_selector("#list li:nth-child(4)", state="detached")
            assert page.locator("#list li").count() > 0
            assert all("guitar" in title for title in page.locator("#list h2").all_text_contents())
            page.click("#language")
            page.wait_for_selector("#ask > button:has-text('排序')")
            page.wait_for_selector("#message:empty", state="attached")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if os.environ.get("ADREC_SCREENSHOTS"):
                page.screenshot(path=f"{os.environ['ADREC_SCREENSHOTS']}/page-{width}.png", full_page=True)
            told = {"user_id": "u1", "ad_id": "a1", "request_id": "r1", "score": 0.5, "score_conversion": 0.25}
            call(address, "/v1/events", {"events": [{**told, "kind": kind} for kind in ("impression", "click", "conversion")]})
            page.reload()
            page.click("#health summary")
            cells = page.locator("#health tbody td").all_text_contents()
            assert cells[2:4] == ["1", "0.5 / 1"] and cells[5] == "0.3 / 1" and cells[6].startswith("0.25\n[0.0")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if os.environ.get("ADREC_SCREENSHOTS"):
                page.screenshot(path=f"{os.environ['ADREC_SCREENSHOTS']}/health-{width}.png", full_page=True)
            assert faults == [] and foreign == []
            browser.close()
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, -signal.SIGTERM)  # uvicorn drains, then ends by the signal
