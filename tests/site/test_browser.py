"""The page in a real browser, as people use it; skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Served, start

from telos import catalogue
from telos.core.registry import entries
from telos.site.build import build
from telos.site.content import Library

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
CLAIMED = next(slug for slug, entry in entries().items() if entry.claim_module)
QUICK = "prdc"
"""A claim whose quick check is quick."""
WIDTHS = (390, 768, 1440)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that fails the test if anything is reported to its console, a breach of the policy for example."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    reports: list[str] = []
    page.on("console", lambda message: reports.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: reports.append(str(error)))
    page.set_default_timeout(20_000)
    yield page
    context.close()
    assert not reports


def shown(page: Any) -> list[str]:
    """The slugs of the cards that can be seen, in their order."""
    return page.locator(".card:not([hidden])").evaluate_all("cards => cards.map(card => card.dataset.slug)")


def eventually(page: Any, condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until `condition` holds. The page's policy forbids what the driver's own waiting for a function does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        page.wait_for_timeout(50)


def progressed(page: Any) -> bool:
    """Whether a run of the check has ended."""
    bar = page.locator("#progress progress")
    return bar.count() == 1 and bar.evaluate("bar => bar.value") > 0


def test_search_narrows_as_one_types_and_the_address_keeps_it(page: Any, served: Served):
    page.goto(served.address)
    everything = shown(page)
    assert len(everything) == len(catalogue.papers())
    page.locator("#q").press_sequentially("preference optim")
    found = shown(page)
    assert 0 < len(found) < len(everything) and "dpo" in found
    assert "q=preference+optim" in page.url
    assert page.locator("#count").inner_text() == f"{len(found)} of {len(everything)} papers"
    page.reload()
    assert shown(page) == found and page.locator("#q").input_value() == "preference optim"
    page.locator("#q").fill("no such words")
    assert shown(page) == [] and page.locator("#none").is_visible()
    page.locator("#clear2").click()
    assert shown(page) == everything


def test_filters_combine_and_back_undoes_them_one_by_one(page: Any, served: Served):
    page.goto(served.address)
    everything = shown(page)
    page.locator("#family").select_option("offline_rl")
    family = shown(page)
    assert set(family) == {row["slug"] for row in catalogue.papers() if row["family"] == "offline_rl"}
    page.locator("label.pick", has_text="planned").click()
    both = shown(page)
    assert set(both) == {s for s in family if catalogue.find(s)["verdict"] == "planned"}
    assert "family=offline_rl" in page.url and "verdict=planned" in page.url
    page.go_back()
    eventually(page, lambda: shown(page) == family)
    assert "verdict" not in page.url
    page.go_back()
    eventually(page, lambda: shown(page) == everything)
    page.go_forward()
    eventually(page, lambda: shown(page) == family)
    page.locator("#family-link").click()
    page.wait_for_url("**/compare/offline_rl")
    page.go_back()
    eventually(page, lambda: shown(page) == family)


@pytest.mark.parametrize("word", ["not shown", "refuted", "confirmed"])
def test_one_click_lists_a_verdict(page: Any, served: Served, word: str):
    page.goto(served.address)
    page.locator("label.pick", has_text=word).click()
    expected = {r["slug"] for r in catalogue.papers() if word in (r["verdicts"].values() or [r["verdict"]])}
    assert set(shown(page)) == expected
    assert all(page.locator(f'.card[data-slug="{slug}"] .chip', has_text=word).count() for slug in expected)


def test_orders(page: Any, served: Served):
    page.goto(served.address)
    page.locator("#sort").select_option("name")
    names = [name.strip().lower() for name in page.locator(".card h2").all_text_contents()]
    assert page.evaluate("names => names.every((name, i) => !i || names[i - 1].localeCompare(name) <= 0)", names)
    page.locator("#sort").select_option("effect")
    effects = {card["slug"]: card["effect"] for card in Library().cards if card["effect"] is not None}
    assert shown(page)[: len(effects)] == sorted(effects, key=lambda slug: -effects[slug])
    page.locator("#sort").select_option("newest")
    years = [catalogue.find(slug)["year"] for slug in shown(page)]
    assert years == sorted(years, reverse=True)


def test_an_unknown_value_in_the_address_shows_everything(page: Any, served: Served):
    page.goto(f"{served.address}?family=no_such&verdict=nonsense&sort=worst")
    assert len(shown(page)) == len(catalogue.papers())


def test_keyboard_alone_is_enough(page: Any, served: Served):
    page.goto(served.address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    eventually(page, lambda: page.evaluate("document.activeElement.id") == "main")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("dpo")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    eventually(page, lambda: "verdict=confirmed" in page.url)
    page.keyboard.press("ArrowLeft")
    eventually(page, lambda: "verdict=" not in page.url)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.card') !== null"):
            break
    # A ring must show where the focus is.
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/*")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", f"papers/{CLAIMED}", "compare/preferences", "about", "source/dpo", "runs"])
def test_accessible_in_both_schemes(chromium: Any, served: Served, path: str, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page.goto(served.address + path)
    grounds = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", grounds)[:3])) < 384) == (scheme == "dark")
    found = axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]})
    assert found.violations_count == 0, found.generate_report()
    page.close()


def test_a_chosen_theme_stays(page: Any, served: Served):
    page.goto(served.address)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: dark"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.goto(f"{served.address}about")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", ["", "papers/dpo", "papers/squarecb_adyen", "compare/offline_rl", "source/dpo"])
def test_nothing_sticks_out_sideways(chromium: Any, served: Served, path: str, width: int):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(served.address + path)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_equations_differ_where_they_are_marked(page: Any, served: Served):
    page.goto(f"{served.address}compare/offline_rl?methods=td3,iql")
    assert page.locator("thead th[data-method]:not([hidden])").count() == 2
    assert page.locator('td[data-method="td3"] math .differs').count() == 0
    assert page.locator('td[data-method="iql"] math .differs').count() > 0
    assert page.locator(".defaults code.differs:visible").count() > 0
    page.locator('#pick input[value="bc"]').check()
    assert page.locator("thead th[data-method]:not([hidden])").count() == 3
    page.go_back()
    eventually(page, lambda: page.locator("thead th[data-method]:not([hidden])").count() == 2)


def test_the_first_view_is_light_and_quick(chromium: Any, served: Served):
    page = chromium.new_page()
    bodies: list[int] = []
    page.on("response", lambda response: bodies.append(len(response.body())))
    page.goto(served.address, wait_until="load")
    assert sum(bodies) < 150_000
    page.reload(wait_until="load")
    page.close()


def test_a_quick_check_runs_to_its_verdict_and_survives_a_reload(page: Any, served: Served):
    page.goto(f"{served.address}papers/{QUICK}")
    page.get_by_role("button", name="Quick check").first.click()
    page.locator("#progress progress").wait_for()
    eventually(page, lambda: progressed(page), 90)
    page.reload()
    eventually(page, lambda: progressed(page))
    page.locator("#outcome table").wait_for(timeout=120_000)
    assert "measure nothing" in page.locator("#outcome").inner_text()
    assert page.locator("#outcome .chip").count() > 1
    assert "done" in page.locator("#progress strong").inner_text()
    recorded = page.locator("#laptop .provenance").inner_text()
    page.reload()
    page.locator("#outcome table").wait_for()
    assert page.locator("#laptop .provenance").inner_text() == recorded


def test_a_check_is_cancelled_and_a_third_one_is_refused(page: Any, served: Served):
    page.goto(f"{served.address}papers/{QUICK}")
    page.get_by_role("button", name="Full check").first.click()
    page.get_by_role("button", name="Cancel").wait_for()
    others = [slug for slug, entry in entries().items() if entry.claim_module and slug != QUICK][:2]
    second = page.context.new_page()
    second.goto(f"{served.address}papers/{others[0]}")
    second.get_by_role("button", name="Full check").first.click()
    second.locator("#progress", has_text="Waiting for the check that runs now").wait_for()
    third = page.context.new_page()
    third.goto(f"{served.address}papers/{others[1]}")
    # The browser reports the refusal to the console, which the fixture's page does not see.
    third.get_by_role("button", name="Full check").first.click()
    third.locator("#progress", has_text="queue is full").wait_for()
    for each in (second, page):
        each.get_by_role("button", name="Cancel").click()
        each.locator("#progress strong", has_text="cancelled").wait_for()
        assert each.get_by_role("button", name="Full check").first.is_enabled()


def test_a_run_goes_on_after_the_server_was_killed(chromium: Any, tmp_path: Path):
    server = start(tmp_path)
    page = chromium.new_page()
    page.goto(f"{server.address}papers/{QUICK}")
    page.get_by_role("button", name="Quick check").first.click()
    eventually(page, lambda: progressed(page), 90)
    server.stop(signal.SIGKILL)
    server = start(tmp_path)
    page.goto(f"{server.address}papers/{QUICK}")
    page.locator("#outcome table").wait_for(timeout=120_000)
    page.close()
    assert server.stop() == 0


def test_the_static_pages_work_from_files_alone(chromium: Any, tmp_path: Path):
    build(tmp_path / "out")
    page = chromium.new_page()
    page.goto((tmp_path / "out" / "index.html").as_uri())
    page.locator("#q").fill("dpo")
    assert "dpo" in shown(page) and len(shown(page)) < len(catalogue.papers())
    page.locator('.card[data-slug="dpo"] h2 a').click()
    page.wait_for_url("**/papers/dpo.html")
    assert page.evaluate(
        "document.fonts.check('16px \"Telos Math\"') && getComputedStyle(document.body).margin === '0px'"
    )
    page.get_by_role("link", name="compare", exact=True).click()
    page.wait_for_url("**/compare/preferences.html*")
    page.close()
