"""The report page in a real browser: nothing on the console, nothing asked of a network, and what moves does."""

import json
import shutil

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install -r requirements-test.txt")
from report_runs import ATTACK, write_comparison, write_run  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

from selfexplain_jax import report  # noqa: E402

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"
)


@pytest.fixture(scope="module")
def browser():
    """One Chromium for the file."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium and chromedriver on the PATH (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run beside another seed, and that of a comparison."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "seed1", seed=1, iou=0.7, pictures=0)
    run = report.write_report(write_run(folder / "seed0", pictures=12), [folder / "seed1"])[0]
    return {"run": run, "comparison": report.write_report(write_comparison(folder / "compare", pictures=12))[0]}


def opened(browser, page):
    browser.get(page.as_uri())
    return lambda selector: browser.find_elements(By.CSS_SELECTOR, selector)


def visible(elements):
    return [element for element in elements if element.is_displayed()]


def check_quiet(browser, page):
    """Nothing was said on the console, and nothing was loaded but the page and what is inside it."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} <= {page.as_uri()}


def test_a_run(browser, pages):
    find = opened(browser, pages["run"])
    # An attack is text: in the table of mistakes, on the cards and among the classes, and nothing runs.
    assert ATTACK in find("#images .small")[0].text and ATTACK in [o.text for o in find("#class option")]
    assert "0.6 ± 0.1" in find("#numbers tbody tr")[0].text
    assert len(find("#numbers tbody tr")) == 2 and find("#audit .tag")
    assert [chart.text for chart in find("#curves figcaption")][:3] == ["loss", "area term", "learning rate"]
    # The whole page fits a phone; tables scroll for themselves.
    for width in (1280, 360):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    # Charts answer to the arrow keys.
    plot = find(".plot")[0]
    plot.send_keys(Keys.HOME)
    assert plot.get_attribute("aria-valuetext") == "0.100 / 0.100 at 10"
    plot.send_keys(Keys.ARROW_RIGHT)
    assert find("#curves output")[0].text == "0.0500 / 0.0500 at 20"

    # Masks in training: one picture at a time. Pictures are drawn once they come into view.
    def steps_shown():
        return [picture.get_attribute("data-step") for picture in visible(find("#steps img"))]

    browser.execute_script("document.querySelector('#masks').scrollIntoView()")
    WebDriverWait(browser, 10).until(lambda _: steps_shown() == ["40"])
    find("#step")[0].send_keys(Keys.ARROW_LEFT)
    WebDriverWait(browser, 10).until(lambda _: steps_shown() == ["20"])

    # The theme is the system's, then the reader's.
    colors = set()
    for scheme in ("dark", "light"):
        emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
        colors.add(find("body")[0].value_of_css_property("background-color"))
    assert len(colors) == 2
    for _ in range(2):
        find("#theme")[0].send_keys(Keys.ENTER)
    assert find("#theme")[0].text == "Theme: dark"
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    check_quiet(browser, pages["run"])


def test_a_comparison(browser, pages):
    find = opened(browser, pages["comparison"])

    def order():
        return [cell.get_attribute("data-value") for cell in find("#numbers tbody th")]

    # A heading sorts, better values first; what has no value stays last.
    [iou] = [th for th in find("#numbers thead th") if th.text.startswith("iou")]
    [deletion] = [th for th in find("#numbers thead th") if th.text.startswith("deletion")]
    iou.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert order() == ["learned", "rise", "grad_cam", "centre"] and iou.get_attribute("aria-sort") == "descending"
    iou.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert order() == ["centre", "grad_cam", "rise", "learned"] and iou.get_attribute("aria-sort") == "ascending"
    deletion.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert order() == ["grad_cam", "learned", "centre", "rise"] and iou.get_attribute("aria-sort") == "none"
    # The best one by deletion failed on an image, which its cell says too.
    assert [cell.text for cell in find("#numbers td.best")][0].endswith("★ failed on 1")
    assert ATTACK in find("#numbers .note")[0].text
    # Numbers that are no headlines come when they are asked for.
    hidden = [th for th in find("#numbers thead th") if "increase" in th.get_attribute("textContent")]
    assert not hidden[0].is_displayed()
    find(".all-numbers")[0].send_keys(Keys.SPACE)
    assert hidden[0].is_displayed()

    # Opacity: what lies over the photo.
    over = visible(find(".over"))[0]
    assert over.value_of_css_property("opacity") == "0.6"
    find("#opacity")[0].send_keys(Keys.HOME)
    assert over.value_of_css_property("opacity") == "0" and find("#opacity-value")[0].text == "0 %"
    under = visible(find(".under"))
    assert under and under[0].get_attribute("src").startswith("data:image/webp")

    # One class, and one kind of image.
    total = len(visible(find(".card")))
    Select(find("#class")[0]).select_by_visible_text(ATTACK)
    cards = visible(find(".card"))
    assert 0 < len(cards) < total and f"{len(cards)} of {len(cards)} images" in find("#count")[0].text
    assert all("1" in card.get_attribute("data-classes").split() for card in cards)
    Select(find("#class")[0]).select_by_index(0)
    Select(find("#kind")[0]).select_by_value("wrong")
    cards = visible(find(".card"))
    assert cards and all("wrong prediction" in card.text for card in cards)
    # Methods side by side, those that are wanted; one that failed says so.
    assert len(visible(cards[0].find_elements(By.CSS_SELECTOR, "[data-method]"))) == 4
    find(".method")[1].send_keys(Keys.SPACE)
    assert len(visible(cards[0].find_elements(By.CSS_SELECTOR, "[data-method]"))) == 3
    assert find(".none")
    check_quiet(browser, pages["comparison"])
