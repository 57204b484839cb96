"""Headless Chromium, as the tests drive it."""

import asyncio
import base64
import json
import os
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lab.children import Children

PATIENCE_S = 60
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# fmt: off
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--window-size=1280,900",
)
# fmt: on


def until(holds: Callable[[], Any], otherwise: str, *, every_s: float = 0.05) -> Any:
    """Wait for what another process does, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(every_s)
    return found


def need_chromium() -> None:
    """Skip the test where there is no browser; in CI there must be one."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs Chromium: apt-get install chromium")
        pytest.skip("Chromium is not installed")


def pictures_in(spare: Path) -> Path:
    """Where pictures are kept: in the folder SIDESTEP_ARTIFACTS if that is set, as in CI."""
    folder = Path(os.environ.get("SIDESTEP_ARTIFACTS") or spare)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Browser:
    """Headless Chromium, driven by its own protocol through the WebSocket client that Flower brings."""

    def __init__(self, children: Children, home: Path) -> None:
        assert CHROMIUM
        home.mkdir()
        log = home / "chromium.log"
        with log.open("wb") as output:
            process = children.start(
                [CHROMIUM, *QUIET, "--remote-debugging-port=0", f"--user-data-dir={home / 'profile'}", "about:blank"],
                env={"HOME": str(home)},
                stdout=output,
                stderr=output,
            )
        port_file = home / "profile" / "DevToolsActivePort"

        def port() -> str | None:
            assert process.poll() is None, log.read_text()[-2000:]
            return port_file.read_text().partition("\n")[0] if port_file.exists() else None

        address = f"http://127.0.0.1:{until(port, 'Chromium did not start')}"
        with urllib.request.urlopen(f"{address}/json/list", timeout=PATIENCE_S) as answer:  # noqa: S310  on loopback
            (page,) = (target for target in json.load(answer) if target["type"] == "page")
        from tornado.websocket import websocket_connect

        self._loop = asyncio.new_event_loop()
        self._socket = self._run(lambda: websocket_connect(page["webSocketDebuggerUrl"], max_message_size=100 << 20))
        self._number = 0
        self.login: tuple[str, str] | None = None
        """User and password for whoever asks; None cancels the question."""
        self.statuses: dict[str, int] = {}
        """HTTP status of each path that was loaded, the last one counts."""
        self.complaints: list[str] = []
        """What scripts in the pages threw or logged as errors."""
        for domain in ("Page", "Network", "Runtime"):
            self._call(f"{domain}.enable")
        self._call("Fetch.enable", handleAuthRequests=True)

    def _run(self, begin: Callable[[], Any]) -> Any:
        async def wait() -> Any:
            return await asyncio.wait_for(begin(), PATIENCE_S)

        return self._loop.run_until_complete(wait())

    def _send(self, method: str, **params: Any) -> int:
        self._number += 1
        message = json.dumps({"id": self._number, "method": method, "params": params})
        self._run(lambda: self._socket.write_message(message))
        return self._number

    def _call(self, method: str, **params: Any) -> Any:
        number = self._send(method, **params)
        while True:
            message = json.loads(self._run(self._socket.read_message))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._on(message.get("method"), message.get("params"))

    def _on(self, event: str | None, params: Any) -> None:
        if event == "Fetch.requestPaused":
            self._send("Fetch.continueRequest", requestId=params["requestId"])
        elif event == "Fetch.authRequired":
            answer = {"response": "CancelAuth"}
            if self.login:
                user, password = self.login
                answer = {"response": "ProvideCredentials", "username": user, "password": password}
            self._send("Fetch.continueWithAuth", requestId=params["requestId"], authChallengeResponse=answer)
        elif event == "Network.responseReceived":
            self.statuses[urlsplit(params["response"]["url"]).path] = params["response"]["status"]
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"].get("text", "") + str(params["exceptionDetails"]))

    def open(self, url: str) -> None:
        """Load a page, to the end of its `load` event."""
        self._call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until the expression is true, and return it."""
        try:
            return until(lambda: self.ask(expression), "never true")
        except AssertionError:
            pytest.fail(f"never true: {expression}; the page says: {self.text[:1500]}")

    @property
    def text(self) -> str:
        """What stands on the page."""
        # Not innerText: styles of single letters break its words.
        return " ".join(str(self.ask("document.body ? document.body.textContent : ''")).split())

    def picture(self, path: Path) -> None:
        """The page as it looks, as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Leave it to its parent to end it."""
        self._socket.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def reload(self) -> None:
        """Load the page anew, as a person would."""
        self._call("Page.reload")
        self.until("document.readyState === 'complete'")

    def rows(self, table: str) -> list[list[str]]:
        """The texts of a table's cells, row by row."""
        found: list[list[str]] = self.ask(f"[...document.querySelectorAll('#{table} tbody tr')].map({CELLS})")
        return found


CELLS = "row => [...row.cells].map(cell => cell.textContent.trim())"
