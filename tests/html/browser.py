"""A page in headless Chromium, without a network: what its document is after some seconds, and what was logged."""

import shutil
import subprocess

import pytest
from bs4 import BeautifulSoup

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr"]
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")


def opened(page, folder, head="", act=""):
    """Return the document after 8 seconds in a browser, and the browser's log.

    `head` is put first into the page's head, `act` is a script at its end.
    """
    return _dumped(_with(page, folder, head, act), folder)


def opened_narrow(page, folder, width, head="", act=""):
    """The same in a frame of `width` pixels (a headless window is never narrower than 500).

    Returns what the page sends to the window around it: `parent.postMessage(text, "*")`.
    """
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, address=_with(page, folder, head, act).as_uri()), "utf-8")
    document, _ = _dumped(frame, folder)
    return document.select_one("pre").get_text()


def printed(page, folder):
    """Return the page as a PDF, as the browser prints it."""
    sheet = folder / "sheet.pdf"
    command = [CHROMIUM, *OPTIONS, OFFLINE, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000"]
    command += [f"--print-to-pdf={sheet}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    return sheet.read_bytes()


FRAME = """<body><pre></pre><iframe width="{width}" height="20000" src="{address}"></iframe><script>
addEventListener("message", (event) => document.querySelector("pre").textContent = event.data);
</script></body>"""


def _with(page, folder, head, act):
    """Write a copy of a page with more in it; return its path."""
    text = page.read_text(encoding="utf-8")
    text = text.replace("<head>", f'<head><base href="{page.parent.as_uri()}/">{head}', 1)
    copy = folder / page.name
    copy.write_text(text.replace("</body>", f"<script>{act}</script></body>"), "utf-8")
    return copy


def _dumped(address, folder):
    command = [CHROMIUM, *OPTIONS, OFFLINE, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,20000"]
    command += ["--virtual-time-budget=8000", "--dump-dom", address.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return BeautifulSoup(done.stdout, "html.parser"), done.stderr
