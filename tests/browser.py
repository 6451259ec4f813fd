"""A real browser without a window: Debian's Chromium, told what to do over its debugging port."""

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request

import numpy as np
import pytest

from ssh_server import free_port


def screenshot(url, folder, *, until, patience_s=60):
    """Open a page; return its picture, shape (y, x, 3), as soon as ``until(picture)`` is true, or at the end."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    port = free_port()
    browser = subprocess.Popen(
        [
            *(program, "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"),
            *("--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--window-size=1000,800"),
            *(f"--remote-debugging-port={port}", f"--user-data-dir={folder}", "about:blank"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return asyncio.run(_look(url, port, until, time.monotonic() + patience_s))
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


async def _look(url, port, until, end):
    from PIL import Image
    from tornado.websocket import websocket_connect

    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                page = next(tab for tab in json.load(answer) if tab["type"] == "page")
            break
        except OSError:
            assert time.monotonic() < end
            await asyncio.sleep(0.2)
    socket = await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=10**8)

    async def call(method, **values):
        await socket.write_message(json.dumps({"id": 1, "method": method, "params": values}))
        while (answer := json.loads(await socket.read_message())).get("id") != 1:
            pass
        return answer["result"]

    await call("Page.enable")
    await call("Page.navigate", url=url)
    while True:
        await asyncio.sleep(1)
        taken = await call("Page.captureScreenshot")
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB"))
        if until(picture) or time.monotonic() > end:
            socket.close()
            return picture
