"""What a person does in the dashboard: by mouse, by keyboard alone, on a phone, and with assistive technology."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

from tests.ui.conftest import Opening, figure, log_in, visit
from tests.ui.scene import ADMIN_KEY, ANSWER, HOSTILE, LARGE, SMALL, Scene

pytestmark = [
    pytest.mark.requires("chromium", "weights:all-minilm-l6-v2-int8"),
    pytest.mark.asyncio(loop_scope="package"),
]

RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
"""What axe looks at."""
VIEWS = ("Live", "Spend", "Requests", "Routers", "Keys", "Playground")


async def status(scene: Scene, secret: str) -> int:
    """What the gateway answers to a key."""
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(verify=False, timeout=30) as client:
        response = await client.get(f"http://127.0.0.1:{scene.served.port}/v1/models", headers=headers)
    return response.status_code


async def becomes(scene: Scene, secret: str, wanted: int) -> None:
    """Wait until the gateway answers so to a key."""
    async with asyncio.timeout(10):
        while await status(scene, secret) != wanted:  # noqa: ASYNC110 - another process's affair
            await asyncio.sleep(0.05)


async def test_login_and_logout(scene: Scene, opening: Opening) -> None:
    """A wrong key is refused; a right one begins a session that no script can read and that a logout ends; nothing of
    the key stays in the page, its address or its storage."""
    async with opening(allowed=("401",)) as page:
        await page.get_by_label("Admin key").fill("sk-wrong")
        await page.keyboard.press("Enter")
        await page.get_by_text("That is not the admin key.").wait_for()
        await log_in(page)
        (cookie,) = await page.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert not cookie["secure"]  # plain HTTP on loopback
        assert await page.evaluate("document.cookie") == ""
        kept = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, location.href])")
        whole = await page.content() + kept
        assert ADMIN_KEY not in whole
        assert cookie["value"] not in whole
        await page.reload()
        await page.wait_for_selector("nav")  # the session outlives the page
        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_selector(".login-card")
        async with httpx.AsyncClient(verify=False, cookies={cookie["name"]: cookie["value"]}) as client:
            assert (await client.get(f"{scene.admin}/admin/keys")).status_code == 401
        await page.reload()
        await page.wait_for_selector(".login-card")


async def make_key(page: Page, alias: str, **fields: str) -> str:
    """Make a key that may name SMALL, with these fields of the form; its secret."""
    await page.get_by_role("button", name="New key").click()
    for label, value in {"Alias": alias, **fields}.items():
        await page.get_by_label(label).fill(value)
    await page.get_by_label(SMALL).check()
    await page.get_by_role("button", name="Create key").click()
    return await shown_secret(page)


async def shown_secret(page: Page) -> str:
    """The secret that a dialog shows, which is closed then."""
    secret = await page.get_by_label("Secret").input_value()
    await page.get_by_role("button", name="Done").click()
    return secret


async def revoke_key(page: Page, alias: str) -> None:
    """Revoke it, and wait until that is said."""
    await page.get_by_role("button", name=f"Revoke {alias}").click()
    await page.get_by_role("button", name="Revoke key").click()
    await page.get_by_text(f"{alias} is revoked.").wait_for()


async def test_a_key_is_made_used_and_revoked(scene: Scene, opening: Opening) -> None:
    """The secret that is shown works within a second; after the revocation it does not."""
    async with opening() as page:
        await log_in(page)
        await visit(page, "Keys")
        secret = await make_key(page, "clicked", **{"A day": "0.25"})
        await becomes(scene, secret, 200)
        row = page.locator("tr", has=page.locator("[data-key]", has_text="clicked"))
        assert SMALL in await row.inner_text()
        assert "$0.25 a day" in await row.inner_text()
        assert secret not in await page.content()
        await revoke_key(page, "clicked")
        await becomes(scene, secret, 401)
        assert await row.count() == 0
        await page.get_by_label("Show revoked and expired ones").check()
        await row.get_by_text("revoked").wait_for()
        audit = await page.get_by_role("region", name="Audit log, latest first").inner_text()
        assert audit.count("dashboard:127.0.0.1") == 2


async def test_a_key_is_rotated_to_other_terms(scene: Scene, opening: Opening) -> None:
    """What the form names is changed, all else is carried over; the new secret works, the old one ends at once."""
    async with opening() as page:
        await log_in(page)
        await visit(page, "Keys")
        terms = {"Requests a minute": "700", "Tags": "old", "Ends after (days)": "3", "A day": "0.25"}
        before = await make_key(page, "turned", **terms)
        await page.get_by_role("button", name="Rotate turned").click()
        await page.get_by_label("The old one is good for (hours)").fill("0")
        await page.get_by_text("Change its terms").click()
        assert await page.get_by_label("Requests a minute").input_value() == "700"
        await page.get_by_label("A day").fill("0.5")
        await page.get_by_label("Requests at once").fill("3")
        assert await page.get_by_label("Tags").input_value() == "old"
        await page.get_by_label("Tags").fill("new, newer")
        await page.get_by_label("Never ends").check()
        await page.get_by_role("button", name="Rotate", exact=True).click()
        after = await shown_secret(page)
        row = page.locator("tr", has=page.locator("[data-key]", has_text="turned"))
        told = await row.inner_text()
        assert all(words in told for words in (SMALL, "700 requests/min", "3 at once", "$0.5 a day")), told
        admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(base_url=scene.admin, headers=admin, verify=False) as client:
            keys = (await client.get("/admin/keys")).json()["data"]
        (key,) = (key for key in keys if key["alias"] == "turned")
        assert (key["tags"], key["expires"], key["models"]) == (["new", "newer"], None, [SMALL])
        await becomes(scene, after, 200)
        await becomes(scene, before, 401)
        await revoke_key(page, "turned")


async def test_playground(scene: Scene, opening: Opening) -> None:
    """Three are asked at once and stream side by side, with the key that was given; each tells its cost, and its call
    tree is in the ledger."""
    before = len(scene.upstream.seen)
    async with opening() as page:
        await log_in(page)
        await visit(page, "Playground")
        await page.get_by_label("Key").fill(scene.keys["bob"])
        await page.keyboard.press("Tab")
        for name in ("auto", "cautious", LARGE):
            await page.get_by_role("checkbox", name=name, exact=True).check()
        assert await page.get_by_role("checkbox", name="mini").count() == 0  # it embeds; it does not answer
        await page.get_by_label("Prompt").fill("What is the capital of Peru?")
        await page.get_by_role("button", name="Ask them").click()
        answers = page.locator("[data-answer]")
        for i in range(3):
            await answers.nth(i).get_by_text("done").wait_for()
            assert ANSWER in await answers.nth(i).inner_text()
        shown = await figure(page, "cost_usd", f'[data-answer="{LARGE}"]')
        await page.locator(f'[data-answer="{LARGE}"]').get_by_role("link", name="Its call tree").click()
        assert await figure(page, "cost_usd") == pytest.approx(shown, abs=1e-12)
    seen = scene.upstream.seen[before:]
    assert len(seen) == 4  # one each, and the cascade's second stage
    assert all(ADMIN_KEY not in str(one.headers) for one in seen)
    (alias,) = scene.rows("SELECT alias FROM requests ORDER BY at DESC LIMIT 1")[0]
    assert alias == "bob"


async def press(page: Page, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this name has the focus."""
    for _ in range(80):
        await page.keyboard.press("Tab")
        told = await page.evaluate(
            "(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || "
            "document.activeElement.labels?.[0]?.innerText || '').trim()"
        )
        if told == name:
            return
    raise AssertionError(f"no way to {name!r} by Tab")


async def test_by_keyboard_alone(scene: Scene, opening: Opening) -> None:
    """Login, skipping the navigation, opening a request, making and revoking a key: nothing needs a mouse, and a dialog
    gives the focus back."""
    async with opening() as page:
        await page.keyboard.type(ADMIN_KEY)
        await press(page, "Enter")
        await page.wait_for_selector("[data-request]")
        await page.reload()
        await page.wait_for_selector("[data-request]")
        await press(page, "Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
        await press(page, "Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
        first = await page.locator("[data-request]").first.get_attribute("aria-label")
        assert first
        await tab_to(page, first)
        await press(page, "Enter")
        await page.get_by_role("heading", level=1, name="Request", exact=True).wait_for()
        await press(page, *["Shift+Tab"] * 4)  # from the page's beginning back into the navigation
        await tab_to(page, "Keys")
        await press(page, "Enter")
        await page.get_by_role("heading", level=1, name="Keys").wait_for()
        await tab_to(page, "New key")
        await press(page, "Enter")
        await page.wait_for_selector("dialog[open]")
        await page.keyboard.type("typed")
        await tab_to(page, "Create key")
        await press(page, "Enter")
        await page.wait_for_selector("[data-secret]")
        await press(page, "Enter")
        await page.wait_for_selector("dialog", state="detached")
        assert await page.evaluate("document.activeElement.innerText") == "New key"
        await tab_to(page, "Revoke typed")
        await press(page, "Enter")
        await tab_to(page, "Revoke key")
        await press(page, "Enter")
        await page.get_by_text("typed is revoked.").wait_for()


async def shown(page: Page, scene: Scene, view: str) -> None:
    """Go to a view and wait for what it draws; "Request" is one of them all."""
    if view == "Request":
        ((id,),) = scene.rows("SELECT id FROM requests WHERE requested = 'panel' ORDER BY at DESC LIMIT 1")
        await page.goto(f"{scene.admin}/dashboard/#/requests/{id}")
        await page.locator("[data-call]").first.wait_for()
        return
    await visit(page, view)
    first = {"Playground": "textarea", "Routers": "figure svg", "Spend": "main svg"}
    await page.locator(first.get(view, "main tbody tr")).first.wait_for()
    if view == "Spend":
        await page.get_by_label("Against", exact=True).select_option(LARGE)
        await page.locator("[data-figure=saved_usd]").wait_for()
    if view == "Live":
        await page.locator(".stat").first.wait_for()


@pytest.mark.parametrize(
    ("scheme", "size"),
    [("light", "wide"), ("dark", "wide"), ("light", "phone"), ("dark", "phone")],
    ids=["light", "dark", "phone", "phone-dark"],
)
async def test_looks(scene: Scene, opening: Opening, shots: Path | None, scheme: str, size: str) -> None:
    """Every view and dialog in light and in dark, on a screen and on a phone: axe finds nothing to complain of, and no
    page is wider than the screen. With CHORUS_SCREENSHOTS a picture of each is kept."""
    async with opening(scheme, size) as page:
        name = scheme if size == "wide" else "phone" if scheme == "light" else "phone-dark"
        await _checked(page, shots, f"login-{name}")
        await log_in(page)
        for view in (*VIEWS, "Request"):
            await shown(page, scene, view)
            await _checked(page, shots, f"{view.lower()}-{name}")
        await visit(page, "Keys")
        for button, dialog in (("New key", "new-key"), ("Text of alice", "text"), ("Rotate alice", "rotate")):
            await page.get_by_role("button", name=button).click()
            await page.locator("dialog[open]").wait_for()
            for more in await page.locator("dialog summary").all():
                await more.click()
            await _checked(page, shots, f"{dialog}-{name}", whole=False)
            await page.keyboard.press("Escape")


async def _checked(page: Page, shots: Path | None, name: str, *, whole: bool = True) -> None:
    if shots is not None:
        await page.screenshot(path=shots / f"{name}.png", full_page=whole)
    found = await Axe().run(page, options={"runOnly": {"type": "tag", "values": list(RULES)}})
    assert not found.response["violations"], found.generate_report()
    wide = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], name


async def test_nothing_is_there_yet(scene: Scene, opening: Opening) -> None:
    """Filters that fit nothing, a request that is not there and a view without rows say so in words."""
    async with opening(allowed=("404",)) as page:
        await log_in(page)
        await visit(page, "Requests")
        await page.get_by_label("Key").fill("nobody")
        await page.keyboard.press("Enter")
        await page.get_by_text("No request fits these filters.").wait_for()
        await page.goto(f"{scene.admin}/dashboard/#/requests/none")
        await page.get_by_text("The ledger has no such request").first.wait_for()


async def test_what_was_said(scene: Scene, opening: Opening) -> None:
    """The prompt and the answer of a key that has them stored are shown to whoever asks for them, which the audit log
    tells; of another key's there is nothing to ask for. Switched off, they are gone."""
    ids = dict(scene.rows("SELECT alias, max(id) FROM requests WHERE strategy = 'auto' GROUP BY alias"))
    async with opening(allowed=("404",)) as page:
        await log_in(page)
        await page.goto(f"{scene.admin}/dashboard/#/requests/{ids['bob']}")
        await page.locator("[data-call]").first.wait_for()
        assert await page.get_by_role("heading", name="Prompt and answer").count() == 0
        await page.goto(f"{scene.admin}/dashboard/#/requests/{ids['alice']}")
        await page.get_by_role("button", name="Show them").click()
        prompt = page.get_by_role("region", name="Prompt", exact=True)
        assert f"{HOSTILE} What is the capital of Peru" in await prompt.inner_text()
        assert ANSWER in await page.get_by_role("region", name="Answer", exact=True).inner_text()
        await visit(page, "Keys")
        audit = page.get_by_role("region", name="Audit log, latest first")
        await audit.get_by_text("read text").first.wait_for()
        await page.get_by_role("button", name="Text of alice").click()
        await page.get_by_label("Store them for (days)").fill("")
        await page.get_by_role("button", name="Save").click()
        await page.get_by_text("No prompt and no answer of alice is stored.").wait_for()
    assert scene.rows("SELECT count(*) FROM texts") == [(0,)]
