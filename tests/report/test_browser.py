"""The page in a real browser: Debian's Chromium, driven by Playwright, from a file, without a network."""

import re
import time
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
DRAWN = (
    "(plots => plots.length && plots.every(plot => plot.querySelector('.main-svg')))"
    "([...document.querySelectorAll('.panel .plot')])"
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium"),
]


def until(page, expression, seconds=60):
    """Ask until it is true. Playwright's own waiting uses eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory, rendered, runs, leave):
    """A page of three networks; ISDA's last seed is missing, and one file is damaged and hostile."""
    folder = tmp_path_factory.mktemp("report")
    for (_, column, seed), run in runs.items():
        if (column, seed) != ("ISDA", 2):
            leave(folder, run, environment={"host": "<img src=x onerror=alert(1)>", "git_revision": "f00d"})
    hostile = folder / "results" / "<img src=x onerror=alert(1)>" / "cell" / "0.json"
    hostile.parent.mkdir(parents=True)
    hostile.write_text("{")
    (folder / "report.html").write_text(rendered(folder))
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """``opened(hash, **options)``: a page that has drawn its curves; it fails the test for what the console says."""
    said, contexts = [], []

    def go(fragment="", where=address, curves=True, **options):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or said.append(request.url)
        )
        page.goto(where + fragment)
        page.wait_for_selector("html[data-ready]", state="attached")
        if curves:
            until(page, DRAWN)
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []


def first_column(page):
    return (
        page.locator("#table-networks table")
        .first.locator("tbody")
        .evaluate_all("bodies => bodies.map(body => body.rows[0].cells[0].textContent)")
    )


def test_it_loads_without_a_word_on_the_console_or_a_request(opened):
    page = opened()
    assert page.title() == "ISDA, reproduced: 15 of 18 runs"
    assert page.locator(".panel").count() == 3
    assert page.locator("#files li").inner_text().startswith("passed over: ")
    offered = (
        page.locator(".panel .modebar")
        .first.locator(".modebar-btn")
        .evaluate_all("all => all.map(b => b.dataset.title)")
    )
    assert offered == ["Download plot as a PNG", "Reset axes"]  # and nothing that sends it away


@pytest.mark.parametrize("key", [None, "Enter"])
def test_a_heading_sorts_and_keeps_the_lines_of_a_row_together(opened, key):
    page = opened(curves=False)
    heading = page.locator("#table-networks th[scope=col]", has_text="CE").first
    press = (
        (lambda: heading.locator("button").click()) if key is None else (lambda: heading.locator("button").press(key))
    )
    assert first_column(page) == ["ResNet-8", "ResNet-20", "ResNet-32"]
    press()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert first_column(page) == ["ResNet-20", "ResNet-32", "ResNet-8"]
    kinds = (
        page.locator("#table-networks tbody").first.locator("tr").evaluate_all("rows => rows.map(row => row.className)")
    )
    assert kinds[:2] == ["ours", "paper"]
    press()
    assert heading.get_attribute("aria-sort") == "descending"
    assert first_column(page) == ["ResNet-8", "ResNet-32", "ResNet-20"]
    press()
    assert heading.get_attribute("aria-sort") is None
    assert first_column(page) == ["ResNet-8", "ResNet-20", "ResNet-32"]


def test_the_list_of_runs_sorts_by_number(opened):
    page = opened(curves=False)
    page.locator("table.runs th", has_text="Last epoch").locator("button").click()
    values = page.locator("table.runs tbody tr td:nth-child(2)").all_inner_texts()
    assert len(values) == 15
    assert [float(value) for value in values] == sorted(float(value) for value in values)


def test_filters_choose_panels_lines_and_runs(opened):
    page = opened()
    page.get_by_label("resnet20", exact=True).check()
    assert page.locator(".found").inner_text() == "5 runs in 1 panel"
    assert page.locator(".panel h3").inner_text() == "resnet20, digits"
    page.get_by_label("isda", exact=True).check()
    assert page.locator(".found").inner_text() == "2 runs in 1 panel"
    assert page.locator(".legend li button").all_inner_texts() == ["isda"]
    assert page.locator("table.runs tbody tr").count() == 2
    page.get_by_role("button", name="Reset", exact=True).click()
    until(page, "document.querySelectorAll('.panel').length === 3")


def test_the_pointer_shows_the_values_of_an_epoch(opened, runs, finished):
    page = opened()
    plot = page.locator(".panel .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    until(page, "document.querySelector('.panel .hoverlayer').textContent.includes('epoch')")
    said = plot.locator(".hoverlayer").text_content()
    epoch = int(re.search(r"epoch (\d+)", said)[1])
    errors = [finished(runs["ResNet-8", "CE", seed]).curves["test_error"][epoch - 1] for seed in range(3)]
    shown = re.search(r"ce : ([\d.]+)% \(([\d.]+)–([\d.]+)\)", said)
    wanted = (sum(errors) / 3, min(errors), max(errors))
    assert [float(number) for number in shown.groups()] == pytest.approx(wanted, abs=0.011)


def test_axis_seeds_and_curve_can_be_chosen(opened):
    page = opened()
    plotted = "document.querySelector('.panel .plot')"
    assert page.evaluate(f"{plotted}._fullLayout.yaxis.type") == "log"
    page.locator("select[name=axis]").select_option("linear")
    until(page, f"{plotted}?._fullLayout?.yaxis.type === 'linear'")
    bands = page.evaluate(f"{plotted}.data.length")
    page.locator("select[name=seeds]").select_option("lines")
    until(page, f"{plotted}?.data?.length === 7")  # two means, three seeds and two
    assert bands == 6  # two means, each with both edges of its band
    page.locator("select[name=curve]").select_option("train_error")
    until(page, f"{plotted}?._fullLayout?.annotations[0].text === 'training error (%)'")
    assert page.evaluate(f"{plotted}.layout.shapes.map(s => s.x0)") == [15.5, 23.5]


def test_a_line_is_hidden_by_its_button(opened):
    page = opened()
    button = page.locator(".legend button").first
    button.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    until(page, "document.querySelector('.panel .plot').data.length === 3")


def test_a_cell_opens_its_runs_and_the_command_of_what_is_missing(opened):
    page = opened(curves=False)
    page.locator("#table-networks td[data-cell=resnet-20--isda] a").click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator("h2").inner_text() == "ResNet-20, ISDA"
    assert dialog.locator("code").all_inner_texts() == [
        "python train.py dataset=digits model=resnet20 loss=isda seed=2"
    ]
    dialog.locator("tbody a").first.click()
    until(page, "document.querySelector('dialog h2').textContent.startsWith('resnet20-digits-')")


def test_a_run_has_an_address_and_shows_all_of_itself(opened, runs):
    run = runs["ResNet-20", "ISDA", 1]
    page = opened(f"#{run.run_id}")
    dialog = page.locator("dialog[open]")
    text = dialog.inner_text()
    assert dialog.locator("h2").inner_text() == run.run_id
    assert "python train.py dataset=digits model=resnet20 loss=isda seed=1" in text
    assert re.search(r"loss.lambda_0\s+0.5", text)
    assert re.search(r"host\s+<img src=x onerror=alert\(1\)>", text)
    assert re.search(r"precision\s+fp32", text)
    assert dialog.locator(".main-svg").count()
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog').open && location.hash === ''")


def test_a_click_on_a_curve_leads_to_its_runs(opened):
    page = opened()
    page.locator("select[name=seeds]").select_option("lines")
    until(page, "document.querySelector('.panel .plot')?.data?.length === 7")
    plot = page.locator(".panel .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.locator(".lines path.js-line").first.bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    page.mouse.click(box["x"] + 1, box["y"] + 1)
    page.wait_for_selector("dialog[open]")
    assert page.locator("dialog h2").inner_text().startswith("resnet8")


def test_the_keyboard_reaches_everything(opened):
    page = opened(curves=False)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        kind = page.evaluate("document.activeElement.className || document.activeElement.tagName")
        if kind == "BODY":
            break
        reached.add(kind)
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", kind
    assert {"sort", "cell", "scroll", "INPUT", "SELECT", "SUMMARY"} <= reached
    page.locator("a.cell").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "cell"


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_light_and_dark(opened, scheme, is_dark):
    page = opened(color_scheme=scheme)
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number))"
    line = "document.querySelector('.panel .plot').data.at(-1).line.color"
    assert (page.evaluate(brightness) < 60) is is_dark
    before = page.evaluate(line)
    button = page.locator("button.theme")
    while button.inner_text() != ("Theme: light" if is_dark else "Theme: dark"):
        button.click()
    assert (page.evaluate(brightness) < 60) is not is_dark
    until(page, f"{line} !== '{before}'")
    page.reload()
    assert (page.evaluate(brightness) < 60) is not is_dark


@pytest.mark.parametrize("fragment", ["", "#networks/resnet-8--isda"])
def test_a_phone_scrolls_no_page_sideways(opened, fragment):
    page = opened(fragment, viewport={"width": 375, "height": 812}, is_mobile=True, has_touch=True)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [375, 375]
    assert page.evaluate("document.querySelector('#runs .scroll').scrollWidth > 375")
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= 375")


def test_an_empty_page_is_quiet(opened, rendered, tmp_path):
    (tmp_path / "report.html").write_text(rendered(tmp_path))
    page = opened(where=(tmp_path / "report.html").as_uri(), curves=False)
    assert "No run has finished yet" in page.locator(".opening").inner_text()
    assert page.locator("table.progress tbody").count() == 1
