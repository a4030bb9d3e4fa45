# SPDX-License-Identifier: Apache-2.0
"""Pages in headless Chromium, served from a folder, and packages of Node."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_WATCHER = """<!DOCTYPE html><iframe src="/PAGE" width="1000" height="800"></iframe><script>
const frame = document.querySelector("iframe");
async function look() {
  let found;
  try {
    const page = frame.contentWindow;
    const there = page.location.href !== "about:blank" && page.document.readyState === "complete";
    found = there ? (() => { SCRIPT })() : undefined;
  } catch (error) { found = { error: String(error) }; }
  if (found === undefined) return setTimeout(look, 50);
  await fetch("/-/found", { method: "POST", body: JSON.stringify(found) });
}
look();
</script>"""


def node_packages(package: str) -> Path:
    """The ``node_modules`` that holds ``package``; skips the test where there is none."""
    for folder in filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)):
        if (Path(folder) / package / "package.json").is_file():
            return Path(folder)
    pytest.skip(f"{package} is not installed (NODE_PATH names where it is)")


def in_browser(folder: Path, page: str, script: str, *, timeout_s: float = 300) -> Any:
    """What ``script`` gives of a page of ``folder``, called with its window ``page`` until it does.

    Skips the test where there is no Chromium.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("Chromium is not installed")
    answer: list[Any] = []
    ready = threading.Event()
    watcher = _WATCHER.replace("PAGE", page).replace("SCRIPT", script)

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {  # noqa: RUF012 as in the base class
            **http.server.SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def do_GET(self) -> None:
            if self.path != "/-/watch":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(watcher.encode())

        def do_POST(self) -> None:
            answer.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            ready.set()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    handler = functools.partial(Handler, directory=str(folder))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/-/watch"
        chromium = subprocess.Popen(
            [browser, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert ready.wait(timeout_s), f"the page gave nothing in {timeout_s:g} s"
        finally:
            os.killpg(chromium.pid, signal.SIGKILL)
            chromium.wait()
            server.shutdown()
    return answer[0]
