"""The chat page in a real browser, without a window; skipped where none is installed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_helpers import FakeEngine, served, tiny_tokenizer, wait_until

sync_api = pytest.importorskip("playwright.sync_api")

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium in PATH (Debian: apt-get install chromium)"),
    pytest.mark.slow,
]
TOKENIZER = tiny_tokenizer()
SAID = "Ada owns the dog.\n```python\nprint('<b>dog</b>')\n```\n<img src=x onerror=alert(1)> The end."
PHONE = {"width": 375, "height": 667}


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(TOKENIZER, SAID)


@pytest.fixture
def page(browser: "sync_api.Browser", engine: FakeEngine) -> Iterator["sync_api.Page"]:
    """The page, and at the end proof that nothing went wrong on it or was fetched from elsewhere."""
    wrong: list[str] = []
    with served(engine, TOKENIZER, max_len=4000) as (url, _):
        context = browser.new_context()
        opened = context.new_page()
        opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        opened.on(
            "request",
            lambda request: None if request.url.startswith((url, "data:")) else wrong.append(request.url),
        )
        opened.goto(url)
        opened.wait_for_selector("#model option", state="attached")
        yield opened
        engine.gate.set()
        context.close()
    assert wrong == []


def ask(page: "sync_api.Page", text: str) -> None:
    page.fill("#say", text)
    page.press("#say", "Enter")


def test_an_answer_is_streamed_and_stays_text(page: "sync_api.Page", engine: FakeEngine) -> None:
    asked: list[dict[str, object]] = []
    page.on(
        "request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None
    )
    page.click("#more")
    page.fill("#system", "Be short.")
    page.fill("#temperature", "0.3")
    page.fill("#seed", "7")
    ask(page, "Who owns the dog?")
    page.wait_for_selector(".again")
    shown = page.text_content("article.assistant .text")
    assert shown == SAID.replace("```python\n", "").replace("\n```\n", "")
    assert page.inner_text("article.assistant pre") == "print('<b>dog</b>')"
    assert page.locator("article img").count() == 0
    assert "tokens/s" in page.inner_text(".speed")
    (body,) = asked
    assert (body["model"], body["temperature"], body["seed"], body["stream"]) == ("tiny", 0.3, 7, True)
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who owns the dog?"},
    ]
    if folder := os.environ.get("MOXIN_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / "wide.png"))


def test_stop_regenerate_and_a_second_turn(page: "sync_api.Page", engine: FakeEngine) -> None:
    engine.reply, engine.pause_s = TOKENIZER.encode("on and on " * 3000), 0.01
    ask(page, "Go")
    page.wait_for_selector("article.assistant.busy")
    wait_until(lambda: len(page.text_content("article.assistant .text")) > 50)
    page.keyboard.press("Escape")
    page.wait_for_selector(".again")
    assert "stopped" in page.inner_text(".speed")
    wait_until(lambda: not engine.has_work)
    engine.reply = TOKENIZER.encode("the lazy dog")
    page.keyboard.press("Alt+r")
    wait_until(lambda: page.locator(".again").count() == 1)
    assert page.text_content("article.assistant .text") == "the lazy dog"
    assert page.locator("article").count() == 2
    ask(page, "More")
    wait_until(lambda: page.locator(".foot").count() == 2 and page.locator(".busy").count() == 0)
    assert page.locator("article").count() == 4
    assert page.locator(".again").count() == 1
    page.keyboard.press("Alt+n")
    assert page.locator("article").count() == 0


def test_a_refusal_is_shown_and_can_be_repeated(browser: "sync_api.Browser") -> None:
    engine = FakeEngine(TOKENIZER, "yes")
    with served(engine, TOKENIZER, max_len=40) as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        ask(page, "dog " * 100)
        page.wait_for_selector(".wrong")
        assert "context holds 40" in page.inner_text(".wrong")
        page.close()


def test_a_phone_in_the_dark(browser: "sync_api.Browser", engine: FakeEngine) -> None:
    with served(engine, TOKENIZER, max_len=4000) as (url, _):
        context = browser.new_context(viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        page.fill("#say", "Who owns the dog?")
        page.tap("#send")
        page.wait_for_selector(".again")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.tap("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        page.tap("#theme")
        if folder := os.environ.get("MOXIN_SCREENSHOTS"):
            page.fill("#say", "Who owns the dog?")
            page.tap("#send")
            page.wait_for_selector(".again")
            page.screenshot(path=str(Path(folder) / "phone.png"))
            page.tap("#more")
            page.screenshot(path=str(Path(folder) / "settings.png"))
        context.close()


def test_the_browser_asks_for_the_key_itself(browser: "sync_api.Browser") -> None:
    with served(FakeEngine(TOKENIZER, "yes"), TOKENIZER, keys=("secret",)) as (url, _):
        context = browser.new_context(http_credentials={"username": "x", "password": "secret"})
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        ask(page, "Well?")
        page.wait_for_selector(".again")
        assert page.inner_text("article.assistant .text") == "yes"
        context.close()
