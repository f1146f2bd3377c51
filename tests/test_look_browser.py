"""The page of tools/look.py in Chromium, headless: sliders, filters, downloads, narrow and dark.

Skipped where Chromium or its driver is not installed (Debian: chromium, chromium-driver).
"""

import ast
import json
import re
import shutil
import time

import numpy as np
import pytest

import metrics
import predict
from conftest import LABELS
from support.files import read_json
from support.finished import FinishedRun, read_thresholds
from support.run import Run
from tools import look
from tools.parts.sides import read_all

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WAIT = 20  # seconds
HOSTILE = [
    "<script>document.title='taken'; window.ran = 1</script> end",
    "</script><script>window.ran = 2</script> end",
    "<img src=x onerror='window.ran = 3'> &amp; &lt; end",
    "\"double\" 'single' 😀 end",
    "nul \0 and half \ud83d end",
]
SHOWN = [*HOSTILE[:4], "nul ␀ and half \ufffd end"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with chromedriver here (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    folder = tmp_path_factory.mktemp("downloads")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = folder
    allowed = {"behavior": "allow", "downloadPath": str(folder)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    """The page of a run, and one with hostile texts and names beside a second run."""
    folder = tmp_path_factory.mktemp("pages")
    assert look.main([str(finished), "--output", str(folder / "plain.html")]) == 0
    data = look.page_data(look.parse([str(finished), str(finished), "--no-words"]))
    for row, text in zip(data["rows"], HOSTILE, strict=False):
        row[2] = text
    data["words"] = [[0, 0, [[HOSTILE[0][:8], 1.0], [HOSTILE[0][8:], -1.0]]]]
    data["names"] = ["</script><b>", "<i>&amp;", *LABELS[2:]]
    (folder / "hostile.html").write_bytes(look.fill(data, look.read_library()).encode())
    return folder


def wait_for(condition):
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def show(browser, path, width=1300, dark=False):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(path.as_uri())
    wait_for(lambda: browser.execute_script("return document.body.dataset.ready"))


def find(browser, selector):
    return browser.find_element("css selector", selector)


def text_of(browser, selector) -> str:
    return find(browser, selector).get_attribute("textContent")


def all_texts(browser, selector: str) -> list[str]:
    """Read in one call, as the table may be drawn again at any time."""
    script = "return [...document.querySelectorAll(arguments[0])].map((x) => x.textContent)"
    return browser.execute_script(script, selector)


def texts(browser) -> list[str]:
    return all_texts(browser, "#rows td.text")


def press(browser, selector: str, keys: str) -> None:
    """With the focus on the element."""
    from selenium.webdriver import ActionChains

    browser.execute_script("arguments[0].focus()", find(browser, selector))
    ActionChains(browser).send_keys(keys).perform()


def choose(browser, name: str, value: str) -> None:
    script = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    browser.execute_script(script + "s.dispatchEvent(new Event('change'))", name, value)


def test_the_page_shows_the_numbers_of_metrics_json(browser, pages, finished):
    show(browser, pages / "plain.html")
    scores = read_json(finished / "metrics.json")
    assert float(text_of(browser, "#macro-f1")) == pytest.approx(
        scores["macro_f1_cross_fitted"], abs=6e-4
    )
    for i, name in enumerate(LABELS, 1):
        cells = browser.find_elements("css selector", f"#labels tbody tr:nth-child({i}) > *")
        shown = [cell.text for cell in cells]
        row = scores["per_label"][name]
        assert (shown[0], int(shown[8])) == (name, row["support"])
        keys = {1: "precision", 2: "recall", 3: "f1", 6: "average_precision", 7: "threshold"}
        for k, key in keys.items():
            assert float(shown[k].split()[0]) == pytest.approx(row[key], abs=6e-4)
        low, high = map(float, re.findall(r"[\d.]+", shown[7])[1:])  # of the folds
        assert 0 < low <= high < 1
    assert f"{scores['macro_f1_tuned']:.3f} with today's" in text_of(browser, "#total")


def test_2768_rows_open_within_two_seconds(browser, finished, tmp_path):
    data = look.page_data(look.parse([str(finished), "--no-words"]))
    some = data["rows"]
    data["rows"] = [[str(i), *some[i % len(some)][1:]] for i in range(2768)]
    path = tmp_path / "large.html"
    path.write_bytes(look.fill(data, look.read_library()).encode())
    seconds = []
    for _ in range(5):  # the best of five: the machine may have other work
        show(browser, path)
        seconds.append(float(find(browser, "body").get_attribute("data-ready")) / 1000)
        if seconds[-1] < 2:
            break
    assert min(seconds) < 2, seconds
    assert "2,768" in text_of(browser, ".dt-info")


def test_a_slider_moved_by_keyboard_shows_the_scores_of_that_threshold(browser, pages, finished):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages / "plain.html")
    (one,), _, _ = read_all([str(finished)], [])
    th = read_thresholds(None, one.run)
    slider = find(browser, "#slider-2")
    assert browser.execute_script("return arguments[0].labels[0].textContent", slider) == LABELS[2]
    for key, times in ((Keys.ARROW_RIGHT, 30), (Keys.ARROW_LEFT, 55), (Keys.HOME, 1)):
        press(browser, "#slider-2", key * times)
        before = th[2]
        th[2] = ast.literal_eval(text_of_dict(browser))[LABELS[2]]
        assert (th[2] > before) == (key == Keys.ARROW_RIGHT)
        counts = metrics.confusion(one.judged.y, metrics.detect(one.judged.p, th))
        wanted = np.array(metrics.precision_recall_f1(counts))
        names = ("precision", "recall", "f1")
        shown = [float(text_of(browser, f"#{name}-2")) for name in names]
        np.testing.assert_allclose(shown, wanted[:, 2], atol=6e-4)
        tp, fp, fn, _ = counts[:, 2]
        line = f"{tp + fp} of 120 detected: {tp} right, {fp} false alarms; {fn} missed"
        assert text_of(browser, "#counts-2") == line
        assert f"rows: {wanted[2].mean():.3f} by hand" in text_of(browser, "#total")
    assert th[2] == 0


def text_of_dict(browser) -> str:
    value = find(browser, "#dict").get_attribute("value")
    return value.removeprefix("thresholds = ")


def test_the_thresholds_saved_are_those_shown(browser, pages, finished, test_csv, tmp_path, capsys):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages / "plain.html")
    press(browser, "#slider-0", Keys.ARROW_RIGHT * 7)
    press(browser, "#slider-4", Keys.END)
    for name in ("npy", "json"):
        find(browser, f"#{name}").click()
        wait_for((browser.downloads / f"th.{name}").exists)
    shown = ast.literal_eval(text_of_dict(browser))
    run = Run(finished)
    path = browser.downloads / "th.npy"
    assert path.stat().st_size == 128 + 4 * 5
    capsys.readouterr()
    saved = read_thresholds(str(path), run)
    assert capsys.readouterr().err == ""  # th.json says that they are this run's
    assert saved.dtype == np.float32 and np.array_equal(saved, np.load(path))
    assert np.array_equal(saved, read_thresholds(shown, run))
    own = read_thresholds(None, run)
    assert saved[0] > own[0] and saved[4] == 1 and np.array_equal(saved[1:4], own[1:4])
    argv = ["--run", str(finished), "--input", str(test_csv), "--thresholds", str(path)]
    assert predict.main([*argv, "--output", str(tmp_path / "out.csv")]) == 0


def test_filters_leave_the_right_rows(browser, pages, finished):
    show(browser, pages / "plain.html")
    (one,), _, _ = read_all([str(finished)], [])
    y, pred = one.judged.y == 1, one.judged.pred
    missed, alarm = y & ~pred, ~y & pred
    fold = one.oof.fold
    joy = LABELS.index("joy")
    seen = y[:, joy] | pred[:, joy]
    cases = {
        ("", "", ""): np.ones(120, bool),
        ("", "missed", ""): missed.any(1),
        ("", "alarm", "1"): alarm.any(1) & (fold == 1),
        ("", "right", ""): ~(missed | alarm).any(1),
        ("joy", "", "2"): seen & (fold == 2),
        ("joy", "missed", ""): missed[:, joy],
        ("joy", "right", ""): (y & pred)[:, joy],
    }
    ids = np.array(one.oof.ids)
    find(browser, ".dt-length select").send_keys("100")
    for (label, kind, of_fold), wanted in cases.items():
        choose(browser, "filter-label", str(LABELS.index(label)) if label else "-1")
        choose(browser, "filter-kind", kind)
        choose(browser, "filter-fold", of_fold)
        found = all_texts(browser, "#rows td.id")
        assert len(found) == min(100, wanted.sum()) and set(found) <= set(ids[wanted])
    choose(browser, "filter-kind", "")
    choose(browser, "filter-label", "-1")
    find(browser, ".dt-search input").send_keys("happy slammed")
    data = look.page_data(look.parse([str(finished), "--no-words"]))
    wanted = {r[2] for r in data["rows"] if "happy" in r[2] and "slammed" in r[2]}
    shown = wait_for(lambda: len(t := texts(browser)) <= len(wanted) and t)
    assert {text.split(" [shaded")[0] for text in shown} == wanted != set()


def test_rows_are_sorted_by_loss_and_by_keyboard(browser, pages):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages / "plain.html")

    def losses():
        return [float(x) for x in all_texts(browser, "#rows tbody tr td:last-child")]

    first = losses()
    assert first == sorted(first, reverse=True)
    assert all("[shaded: " in text for text in texts(browser)[:2])
    press(browser, "#rows th:last-child [role=button]", Keys.ENTER)
    wait_for(lambda: losses() != first)
    assert losses() == sorted(losses()) and max(losses()) < min(first)


def test_nothing_runs_and_nothing_vanishes(browser, pages):
    browser.get_log("browser")
    show(browser, pages / "hostile.html")
    shown = texts(browser)
    assert shown[0] == f"{SHOWN[0]} [shaded: </script><b>]"
    assert shown[1:5] == SHOWN[1:]
    search = find(browser, ".dt-search input")
    search.send_keys("onerror")  # what is searched in is read as HTML by the library
    wait_for(lambda: texts(browser) == [SHOWN[2]])
    search.clear()
    search.send_keys("<img src=x")
    wait_for(lambda: texts(browser) == [SHOWN[2]])
    choose(browser, "filter-label", "1")
    assert browser.execute_script("return window.ran ?? null") is None
    assert browser.title != "taken"
    assert text_of(browser, "#labels tbody tr:nth-child(1) th") == "</script><b>"
    assert text_of(browser, "#labels tbody tr:nth-child(2) th") == "<i>&amp;"
    assert list(ast.literal_eval(text_of_dict(browser)))[:2] == ["</script><b>", "<i>&amp;"]
    assert not browser.find_elements(
        "css selector", "#page b b, #page i i, #page img, #page script"
    )
    assert [x for x in browser.get_log("browser") if x["level"] == "SEVERE"] == []


def test_a_run_beside_itself_has_no_row_that_differs(browser, pages):
    show(browser, pages / "hostile.html")
    assert "one recipe" in text_of(browser, "#answer")
    choose(browser, "filter-sides", "differ")
    assert text_of(browser, "#rows tbody") == "No row is like this."


def test_nothing_is_asked_of_the_network(browser, pages):
    browser.get_log("performance")
    show(browser, pages / "plain.html")
    events = [json.loads(x["message"])["message"] for x in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert sent and all(url.startswith(("file:", "blob:", "data:")) for url in sent), sent
    script = "return fetch('http://127.0.0.1:9/').then(() => 'sent', (e) => 'refused')"
    browser.get_log("browser")
    assert browser.execute_script(script) == "refused"
    log = [x["message"] for x in browser.get_log("browser")]
    assert any("Content Security Policy" in message for message in log)


def test_a_narrow_page_does_not_scroll_sideways(browser, pages):
    for name in ("plain", "hostile"):
        show(browser, pages / f"{name}.html", width=360)
        size = "return [document.documentElement.scrollWidth, innerWidth]"
        assert browser.execute_script(size) == [360, 360]
        box = "const b = document.querySelector('.dt-layout-table'); "
        assert browser.execute_script(box + "return b.scrollWidth > b.clientWidth")


def luminance(colour: str) -> float:
    """Relative, as WCAG 2 has it; colour: 'rgb(1, 2, 3)'."""
    parts = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(browser, pages, dark):
    show(browser, pages / "plain.html", dark=dark)
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    page = luminance(browser.execute_script(style, "body", "backgroundColor"))
    assert (page < 0.05) == dark
    for selector in ("body", ".soft", "nav a", ".threshold", "#rows td", "button", "textarea"):
        ink = luminance(browser.execute_script(style, selector, "color"))
        low, high = sorted((ink, page))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_the_weights_of_the_run_were_only_read(finished):
    FinishedRun(str(finished))
