"""Take the pictures of the README (docs/pictures): the report and the server's page of the sample, in a real browser.

Run `make demo` first. Costs a minute; needs Chromium and the `dev` extra.

    python docs/take_pictures.py [the folder of configs/sample and runs/sample]
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
SIZE = {"width": 1280, "height": 900}
PATIENCE_SECONDS = 180


def main() -> None:
    """Both pictures."""
    from playwright.sync_api import sync_playwright

    project = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = Path(tempfile.mkdtemp()) / "store.sqlite"
    serve = ["serve", "--config", "configs/sample/serve.yaml", "--port", str(port), "--set", f"store={store}", "--quiet"]
    server = subprocess.Popen([sys.executable, "-m", "adrec", *serve], cwd=project, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(f"{address}/health/ready")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE, locale="en-US")
            page.goto((project / "runs/sample/evaluation/report.html").as_uri())
            page.screenshot(path=PICTURES / "report.png")
            page.goto(address)
            page.wait_for_selector("#list li")
            page.screenshot(path=PICTURES / "serve.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()
    print(f"{PICTURES}: report.png, serve.png")


def _wait(address: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"{address} does not answer")


if __name__ == "__main__":
    main()
