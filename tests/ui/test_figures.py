"""Every figure that the dashboard shows is what the ledger holds."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import Any

import pytest

from gateway.ledger.rolling_up import RollingUp
from gateway.ledger.savings import savings
from gateway.ledger.sqlite_ledger import SqliteLedger
from protocol.usage import Price
from tests.ui.conftest import Opening, figure, log_in, visit
from tests.ui.scene import ADMIN_KEY, HOSTILE, LARGE, ROOT, SMALL, TRAFFIC, Scene

pytestmark = [
    pytest.mark.requires("chromium", "weights:all-minilm-l6-v2-int8"),
    pytest.mark.asyncio(loop_scope="package"),
]
MANIFEST = ROOT / "config/artefacts/token-uncertainty/manifest.json"


async def test_live(scene: Scene, opening: Opening) -> None:
    """Requests, failures, times and spend of the last quarter of an hour."""
    async with opening() as page:
        await log_in(page)
        since = time.time() - 3000  # nothing of the scene is older but what was long before
        count, failed, cost = scene.rows(
            "SELECT count(*), sum(outcome <> 'ok'), sum(cost_nano) FROM requests WHERE at > ?", since
        )[0]
        assert count >= len(TRAFFIC)
        assert await figure(page, "requests") == count
        assert await figure(page, "failed") == failed == 1
        assert await figure(page, "cost_usd") == pytest.approx(cost / 1e9, abs=1e-12)
        took = sorted(
            row[0]
            for row in scene.rows("SELECT latency_s FROM requests WHERE at > ? AND outcome = 'ok'", since)
        )
        assert await figure(page, "p50") == pytest.approx(took[(len(took) + 1) // 2 - 1])
        assert await figure(page, "in_flight") == 0
        listed = await page.locator("[data-request]").evaluate_all(
            "all => all.map((one) => one.dataset.request)"
        )
        assert listed == [
            id for (id,) in scene.rows("SELECT id FROM requests ORDER BY at DESC, id DESC LIMIT 8")
        ]
        assert await page.get_by_text("worker-1").is_visible()


@pytest.mark.parametrize(
    ("tab", "table", "group"),
    [
        ("Key", "requests", "coalesce(alias, key)"),
        ("Team", "requests", "team"),
        ("Model", "calls", "model"),
        ("Strategy", "requests", "strategy"),
    ],
)
async def test_spend(scene: Scene, opening: Opening, tab: str, table: str, group: str) -> None:
    """What a day cost, by key, team, model and strategy: every row, every column, and the total. A name that looks
    like markup is a name."""
    async with opening() as page:
        await log_in(page)
        await visit(page, "Spend")
        await page.get_by_role("radio", name=tab).check(force=True)
        await page.get_by_role("columnheader", name=tab, exact=True).wait_for()
        rows = scene.rows(
            f"SELECT {group}, sum(cost_nano), count(*), sum(outcome <> 'ok'), sum(prompt_tokens), "
            f"sum(completion_tokens) FROM {table} GROUP BY 1"
        )
        assert len(rows) >= 3
        listed = page.get_by_role("region", name=f"Spend by {tab.lower()}", exact=True).locator("tbody tr")
        assert await listed.count() == len(rows)
        names = ("cost", "count", "failed", "prompt_tokens", "completion_tokens")
        for name, cost, *others in rows:
            shown = [await figure(page, f"{column}:{name}") for column in names]
            assert shown == pytest.approx([cost / 1e9, *others], abs=1e-12), name
        total = sum(row[1] for row in rows) / 1e9
        assert await figure(page, "total_usd") == pytest.approx(total, abs=1e-12)
        if tab == "Key":
            assert await page.get_by_role("rowheader", name=HOSTILE, exact=True).is_visible()


@pytest.mark.parametrize("added_up", [False, True], ids=["from rows", "added up"])
async def test_spend_over_months(scene: Scene, opening: Opening, added_up: bool) -> None:
    """Months are shown by whole days, and tell what the rows do, whether their days have been added up or not."""
    later = time.time() + 2 * 86_400
    async with opening() as page:
        if added_up:  # today as well, so nothing may be asked of the gateway until that is taken back
            RollingUp(lambda: SqliteLedger(scene.ledger), 400, lambda: later).once()
            assert scene.rows("SELECT count(*) FROM days WHERE made = 1")[0][0] >= 1
        await log_in(page)
        await visit(page, "Spend")
        for stretch in ("30 days", "90 days"):
            await page.get_by_role("radio", name=stretch).check(force=True)
            await page.get_by_text(f"in {stretch}", exact=True).wait_for()
            for name, cost, count in scene.rows(
                "SELECT coalesce(alias, key), sum(cost_nano), count(*) FROM requests GROUP BY 1"
            ):
                assert await figure(page, f"cost:{name}") == pytest.approx(cost / 1e9, abs=1e-12)
                assert await figure(page, f"count:{name}") == count
    with closing(SqliteLedger(scene.ledger)) as ledger:
        ledger.change([("DELETE FROM days", [])])


@pytest.mark.parametrize("tab", ["Key", "Team", "Model", "Strategy"])
async def test_savings(scene: Scene, opening: Opening, tab: str) -> None:
    """What was saved against always asking the large model, as a whole and by group: the estimate is the ledger's, the
    interval what the admin API tells, the sample size what the ledger counts. Groups add up to the whole."""
    asked = {"against": LARGE, "by": tab.lower(), "minutes": 1440}
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    told = (await scene.served.admin.get("/admin/savings", params=asked, headers=headers)).json()
    with closing(SqliteLedger(scene.ledger)) as ledger:
        expected = savings(ledger.read, LARGE, Price(2.5e-6, 1e-5), merging=["panel"], by=[tab.lower()])
    ((answers,),) = scene.rows(
        "SELECT count(*) FROM calls JOIN requests ON requests.id = calls.request WHERE calls.model = ? "
        "AND calls.outcome = 'ok' AND requests.outcome = 'ok' AND strategy <> 'panel'",
        LARGE,
    )
    async with opening() as page:
        await log_in(page)
        await visit(page, "Spend")
        await page.get_by_role("radio", name=tab).check(force=True)
        await page.get_by_label("Against", exact=True).select_option(LARGE)
        await page.get_by_role("region", name=f"Saved by {tab.lower()}").wait_for()
        assert await figure(page, "saved_answers") == answers
        assert await figure(page, "saved_usd") == pytest.approx(expected.usd, rel=1e-9)
        assert await figure(page, "saved_against_usd") == pytest.approx(expected.against_usd, rel=1e-9)
        assert await figure(page, "saved_low_usd") == pytest.approx(told["low_usd"], rel=0.02)
        assert await figure(page, "saved_high_usd") == pytest.approx(told["high_usd"], rel=0.02)
        total = 0.0
        for one in expected.groups:
            (name,) = one.group
            assert await figure(page, f"saved_requests:{name}") == one.requests
            assert await figure(page, f"saved_spent:{name}") == pytest.approx(one.spent_usd, rel=1e-9)
            low, saved, high = [
                await figure(page, f"{part}:{name}") for part in ("saved_low", "saved", "saved_high")
            ]
            assert saved == pytest.approx(one.usd, rel=1e-9, abs=1e-12)
            assert low <= saved + 1e-12
            assert saved <= high + 1e-12
            total += saved
        assert total == pytest.approx(expected.usd, rel=1e-9)


async def test_savings_need_answers(scene: Scene, opening: Opening) -> None:
    """With fewer than a hundred measured answers there is a sentence and no figure; an embedding model cannot be
    chosen."""
    async with opening() as page:
        await log_in(page)
        await visit(page, "Spend")
        against = page.get_by_label("Against", exact=True)
        await against.select_option("broken")
        await page.get_by_text("that takes 100 measured answers of broken, and the ledger has 0").wait_for()
        assert await page.locator('[data-figure="saved_usd"]').count() == 0
        options = await against.locator("option").all_inner_texts()
        assert sorted(options) == sorted(["choose a model", SMALL, LARGE, "broken"])


async def test_one_request(scene: Scene, opening: Opening) -> None:
    """A request is opened from the list: its calls under the strategies that asked for them, each with time and cost,
    in the order they began, and why it was decided so."""
    async with opening() as page:
        await log_in(page)
        await visit(page, "Requests")
        await page.get_by_label("Strategy").select_option("panel")
        ((id, cost, took),) = scene.rows(
            "SELECT id, cost_nano, latency_s FROM requests WHERE strategy = 'panel' ORDER BY at DESC LIMIT 1"
        )
        await page.locator(f'[data-request="{id}"]').click()
        await page.get_by_role("heading", level=1, name="Request", exact=True).wait_for()
        assert await figure(page, "cost_usd") == pytest.approx(cost / 1e9, abs=1e-12)
        assert await figure(page, "latency_s") == pytest.approx(took)
        calls = scene.rows(
            "SELECT number, model, kind, cost_nano, latency_s, began_s, asker FROM calls WHERE request = ?",
            id,
        )
        assert len(calls) == 3  # an embedding and an answer for the router, an answer for the panel itself
        for number, model, _, cost, took, _, _ in calls:
            row = page.locator(f'[data-call="{number}"]')
            assert model in await row.inner_text()
            assert await figure(page, f"cost:{number}") == pytest.approx(cost / 1e9, abs=1e-12)
            assert await figure(page, f"latency:{number}") == pytest.approx(took)
        order = await page.locator("[data-call]").evaluate_all(
            "all => all.map((one) => Number(one.dataset.call))"
        )
        inner = [call for call in calls if call[6] == "auto"]
        assert [call[2] for call in sorted(inner, key=lambda call: call[5])] == ["embedding", "answer"]
        assert order == [call[0] for call in sorted(calls, key=lambda call: (call[6] == "auto", call[5]))]
        decision = page.get_by_role("region", name="Decision")
        text = (
            await decision.inner_text() if await decision.count() else await page.locator("main").inner_text()
        )
        assert "agent-forest" in text
        assert "Decision of auto" in text


async def test_routers(scene: Scene, opening: Opening) -> None:
    """Frontier and drift: means and shares of the decisions that the ledger holds."""
    async with opening() as page:
        await log_in(page)
        await visit(page, "Routers")
        rows = scene.rows(
            "SELECT decision, cost_nano FROM requests WHERE strategy = 'auto' AND outcome = 'ok' "
            "AND decision IS NOT NULL ORDER BY at DESC"
        )
        facts = [(json.loads(decision), cost / 1e9) for decision, cost in rows]
        means = {
            "auto": (
                [told["estimates"][told["chosen"]]["quality"] for told, _ in facts],
                [cost for _, cost in facts],
            )
        }
        for model in (SMALL, LARGE):
            told = [fact["estimates"][model] for fact, _ in facts]
            means[model] = ([one["quality"] for one in told], [one["cost_usd"] for one in told])
        await page.locator("figure[data-strategy=auto] summary").click()
        for name, (quality, cost) in means.items():
            assert await figure(page, f"quality:auto:{name}") == pytest.approx(sum(quality) / len(quality))
            assert await figure(page, f"cost:auto:{name}") == pytest.approx(sum(cost) / len(cost))
        newer = [told["chosen"] for told, _ in facts[: len(facts) // 2]]
        share = newer.count(SMALL) / len(newer)
        assert await figure(page, f"newer:auto:{SMALL}") == pytest.approx(share)
        assert await figure(page, "decisions:auto") == len(facts)
        await page.get_by_role("radio", name="In training, as measured").check(force=True)
        await page.locator("figure[data-strategy=cautious]").wait_for()
        await page.locator("figure[data-strategy=cautious] summary").click()
        card: dict[str, Any] = json.loads(MANIFEST.read_text())["metrics"]
        (row,) = (row for row in card["rows"] if row["name"] == "cascade")
        assert await figure(page, "quality:cautious:cascade") == pytest.approx(row["score"])


async def test_budgets(scene: Scene, opening: Opening) -> None:
    """What is spent of a key's budget is what the ledger says it cost."""
    async with opening() as page:
        await log_in(page)
        await visit(page, "Keys")
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        listed = (await scene.served.admin.get("/admin/keys", headers=headers)).json()["data"]
        for key in listed:
            if key["alias"] not in scene.keys:
                continue
            (cost,) = scene.rows("SELECT sum(cost_nano) FROM requests WHERE key = ?", key["id"])[0]
            assert await figure(page, f"spent:key:{key['id']}:day") == pytest.approx(cost / 1e9, abs=1e-12)
