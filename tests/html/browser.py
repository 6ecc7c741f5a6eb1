"""A page in headless Chromium, without a network: what its document is after some seconds, and what was logged."""

import shutil
import subprocess

import pytest
from bs4 import BeautifulSoup

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr"]
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")


def opened(page, folder, head="", act="", size="1280,20000"):
    """Return the document after 8 seconds in a browser, and the browser's log.

    `head` is put first into the page's head, `act` is a script at its end.
    """
    text = page.read_text(encoding="utf-8")
    head = f'<head><base href="{page.parent.as_uri()}/">{head}'
    copy = folder / page.name
    copy.write_text(text.replace("<head>", head, 1).replace("</body>", f"<script>{act}</script></body>"), "utf-8")
    command = [CHROMIUM, *OPTIONS, OFFLINE, f"--user-data-dir={folder / 'profile'}", f"--window-size={size}"]
    command += ["--virtual-time-budget=8000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return BeautifulSoup(done.stdout, "html.parser"), done.stderr
