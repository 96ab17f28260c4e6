"""One scene, one browser and one logged-in page for all tests of the dashboard."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from tests.served import SERVE, Served, free_port
from tests.ui.scene import ADMIN_KEY, ROOT, Scene, a_scene

SIZES = {"wide": (1280, 860), "phone": (390, 844)}


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """The running gateway."""
    folder = tmp_path_factory.mktemp("scene")
    async with AsyncExitStack() as stack:

        async def start(config: str) -> Served:
            path, port, admin_port = folder / "config.yaml", free_port(), free_port()
            path.write_text(config)
            log = (folder / "log").open("ab")
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", SERVE, str(path), str(port), str(admin_port), "2"),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
            )
            log.close()

            async def end() -> None:
                process.terminate()
                await process.communicate()

            stack.push_async_callback(end)
            admin = await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}", verify=False)
            )
            return Served(process, port, path, folder / "log", admin)

        yield await stack.enter_async_context(a_scene(start, folder / "state"))


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    """The system's Chromium, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        await browser.close()


Opening = Callable[..., Any]


@pytest_asyncio.fixture(loop_scope="package")
async def opening(browser: Browser, scene: Scene) -> AsyncIterator[Opening]:
    """Opens pages at the login. Whatever the browser refuses or complains of, a breach of the content security policy
    first, fails the test."""
    complaints: list[str] = []

    def complained(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    @asynccontextmanager
    async def open_page(
        scheme: Any = "light", size: str = "wide", allowed: tuple[str, ...] = ()
    ) -> AsyncIterator[Page]:
        width, height = SIZES[size]
        context: BrowserContext = await browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}, timezone_id="UTC"
        )
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", complained)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        foreign: list[str] = []
        page.on(
            "request", lambda made: None if made.url.startswith(scene.admin) else foreign.append(made.url)
        )
        await page.goto(f"{scene.admin}/")
        await page.wait_for_selector(".login-card")
        try:
            yield page
        finally:
            await context.close()
        assert not foreign, "the page asked another host"
        complaints[:] = [line for line in complaints if not any(word in line for word in allowed)]

    yield open_page
    assert not complaints


async def log_in(page: Page) -> None:
    """With the admin key, as a person does."""
    await page.get_by_label("Admin key").fill(ADMIN_KEY)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_selector("nav")


async def visit(page: Page, view: str, title: str | None = None) -> None:
    """Click on a view's name."""
    await page.get_by_role("navigation").get_by_role("link", name=view, exact=True).click()
    await page.get_by_role("heading", level=1, name=title or view).wait_for()


async def figure(page: Page, name: str, within: str = "main") -> float:
    """The exact value of a figure that is shown; what is written beside it agrees."""
    element = page.locator(f'{within} data[data-figure="{name}"]').first
    await element.wait_for()
    value, text = await element.get_attribute("value"), await element.inner_text()
    assert value is not None
    shown = float(text.replace("−", "-").replace("$", "").replace(",", "").split(" ")[0] or 0)
    scale = {"ms": 1000.0, "%": 100.0}.get(text.rpartition(" ")[2], 1.0)
    assert shown == pytest.approx(float(value) * scale, rel=0.006, abs=0.051 if scale == 100.0 else 1e-12), (
        text
    )
    return float(value)


@pytest.fixture
def shots() -> Path | None:
    """Where screenshots go, when somebody wants them."""
    told = os.environ.get("CHORUS_SCREENSHOTS")
    if not told:
        return None
    folder = Path(told)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
