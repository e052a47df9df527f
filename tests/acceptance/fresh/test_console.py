"""A person at the console, in a real browser, on a live platform."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.live import LivePlatform
from tests.support.tools import required_tool

HOSTILE = '<img src=x onerror=alert(1)> & the "battery" is a joy 😀'


@pytest.fixture
def page(live: LivePlatform) -> Iterator[Page]:
    """Yield a fresh tab; any error that it reports fails the test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=required_tool("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)
        page.goto(f"{live.url}/console")
        try:
            yield page
            assert not errors
        finally:
            browser.close()


@pytest.fixture
def console(page: Page, live: LivePlatform) -> Page:
    page.get_by_label("API key").fill(live.key)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name="Predict")).to_be_visible()
    return page


def test_a_wrong_key_is_reported_and_not_stored(page: Page) -> None:
    page.get_by_label("API key").fill("vk_wrong_key")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('valence.key')") is None


def test_predict_correct_and_find_again(console: Page) -> None:
    console.get_by_role("textbox", name="Text", exact=True).fill(HOSTILE)
    console.get_by_role("button", name="Predict", exact=True).click()
    card = console.get_by_role("article").first
    expect(card.locator("blockquote")).to_have_text(HOSTILE)
    expect(card.locator(".chip")).to_contain_text("positive")
    expect(card).to_contain_text("champion")
    card.get_by_role("button", name="Wrong").click()
    card.get_by_role("radio", name="neutral").check()
    card.get_by_label("Comment").fill("<b>no</b>")
    card.get_by_role("button", name="Save").click()
    expect(card.locator(".said")).to_contain_text("Judged wrong, really neutral")
    card.get_by_role("button", name="Find similar").click()
    nearest = console.locator("#found li").first
    expect(nearest.locator("blockquote")).to_have_text(HOSTILE)
    expect(nearest.locator(".similarity")).to_contain_text("1.00")
    console.get_by_role("link", name="Predictions").click()
    expect(console.locator("#listed article").first.locator("blockquote")).to_have_text(HOSTILE)


@pytest.mark.parametrize(
    ("text", "reason"), [("Das Paket kam zu spät an", "“de”"), ("👎👎👎", "most of these characters")]
)
def test_a_text_that_the_version_does_not_know_is_marked(console: Page, text: str, reason: str) -> None:
    console.get_by_role("textbox", name="Text", exact=True).fill(text)
    console.get_by_role("button", name="Predict", exact=True).click()
    card = console.get_by_role("article").first
    expect(card.locator("blockquote")).to_have_text(text)
    expect(card).to_contain_text(reason)
    expect(card).to_contain_text("its answer means little")


def test_models_show_what_runs_and_lead_to_a_prediction_with_one(console: Page) -> None:
    console.get_by_role("link", name="Models").click()
    lexicon = console.get_by_role("article").filter(has_text="Version 1")
    expect(lexicon.locator(".state")).to_have_text("ready")
    lexicon.get_by_role("button", name="Predict with it").click()
    console.get_by_role("textbox", name="Text", exact=True).fill("wonderful")
    console.keyboard.press("Control+Enter")
    expect(console.get_by_role("article").first).to_contain_text("version 1, named")


def test_refusals_are_shown_in_the_platforms_words(console: Page) -> None:
    console.get_by_role("textbox", name="Text", exact=True).fill("x" * 20_001)
    console.get_by_role("button", name="Predict", exact=True).click()
    expect(console.get_by_role("alert")).to_contain_text("at most 20,000")


def test_forgetting_the_key_leaves_nothing(console: Page) -> None:
    console.get_by_role("button", name="Forget key").click()
    expect(console.get_by_label("API key")).to_be_visible()
    assert console.evaluate("sessionStorage.getItem('valence.key')") is None
