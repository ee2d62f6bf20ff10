"""A real browser for tests and screenshots, where this machine has one: support.

Nothing here is taught. It needs chromium or Chrome, and the package playwright, which
`python3 -m course test` installs.

>>> problem() == "" or "No chromium" in problem() or "playwright" in problem()
True
"""

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

PLAYWRIGHT = "playwright.sync_api"  # for tests only, so imported where it is needed
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chromium-headless-shell",  # Debian: enough for all but a window
    "chrome",
    "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# A browser that talks to nobody but the page: no updates, no safe-browsing lists.
FLAGS = (
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--force-color-profile=srgb",
)
SIZE = {"width": 1280, "height": 860}
WAIT = 60_000  # milliseconds, for what takes two or three seconds


def browser_path() -> str:
    """Return the browser to use, or "" if this machine has none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), "")


def problem() -> str:
    """Return why no screenshot can be made on this machine, or ""."""
    if not browser_path():
        return (
            "No chromium or Chrome was found. Install one (Debian: "
            "`apt install chromium`) and start this again."
        )
    try:
        importlib.import_module(PLAYWRIGHT)
    except ImportError:
        return (
            "The package playwright is missing. `python3 -m course test` installs it "
            "with the other packages for testing."
        )
    return ""


@contextlib.contextmanager
def page(address: str) -> Iterator[Any]:
    """Yield a browser's page that shows the address."""
    sync_playwright = importlib.import_module(PLAYWRIGHT).sync_playwright

    # Containers have only the superuser, for whom chromium wants this.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    flags = [*FLAGS, *(["--no-sandbox"] if root else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path(), args=flags, headless=True
        )
        try:
            opened = browser.new_page(viewport=SIZE)
            opened.set_default_timeout(WAIT)
            opened.goto(address)
            yield opened
        finally:
            browser.close()
