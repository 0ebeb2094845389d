"""The page in a real browser: Debian's Chromium, driven by Playwright, from a file, without a network."""

import re
import time
from pathlib import Path

import pytest

from isda_repro import config
from isda_repro.experiments.plan import Run
from isda_repro.report.evidence import evidence
from isda_repro.report.page import page as render

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
DRAWN = (
    "(plots => plots.length && plots.every(plot => plot.querySelector('.main-svg')))"
    "([...document.querySelectorAll('.panel .plot')])"
)
WIDE = """
title: Strengths
metric: test_error_final
seeds: [0, 1, 2]
set: [dataset=digits, model=resnet8, loss=isda]
rows:
  - {ResNet-8 on digits with a long name: model=resnet8}
columns:
  - {STRENGTHS}
"""
HOSTILE = "<img src=x onerror=alert(1)>"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium"),
]


def until(page, expression, seconds=120):
    """Wait until a JavaScript expression is true; the page forbids eval, which Playwright uses to wait."""
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
def address(tmp_path_factory, rendered, runs, leave, finished):
    """Return the address of a page that lacks ISDA's last seed; file names and contents have HTML in them."""
    folder = tmp_path_factory.mktemp("report")
    for (_, column, seed), run in runs.items():
        curves = finished(run).curves
        if column == "ISDA":
            curves |= {"covariances/ratio": [0.01 * (seed + 1) * epoch for epoch in range(len(curves["lr"]))]}
        if (column, seed) != ("ISDA", 2):
            leave(folder, run, environment={"host": HOSTILE}, curves=curves)
    damaged = folder / "results" / HOSTILE / "cell" / "0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    (folder / "report.html").write_text(rendered(folder))
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """Return ``opened(hash, **options)``: a page that has drawn its curves.

    The test fails if the console prints, a dialog opens, or anything is requested.
    """
    said, contexts = [], []

    def go(fragment="", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or said.append(request.url)
        )
        page.goto(address + fragment)
        page.wait_for_selector("html[data-ready]", state="attached")
        until(page, DRAWN)
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []


def test_the_page_loads_silently_and_draws_the_curves_and_a_run(opened, runs, finished):
    page = opened()
    assert page.locator(".panel").count() == 3
    assert page.locator("table.runs tbody tr").count() == 15
    assert page.locator(".panel .legend .heading").all_inner_texts() == ["last epoch"] * 3
    assert page.evaluate("document.querySelector('.panel .plot').layout.shapes.map(s => s.x0)") == [15.5, 23.5]
    means = page.evaluate("[...document.querySelector('.panel .plot').data].filter(t => t.customdata).map(t => t.y)")
    of_ce = [finished(runs["ResNet-8", "CE", seed]).curves["test_error"] for seed in range(3)]
    assert means[0] == pytest.approx([sum(values) / 3 for values in zip(*of_ce, strict=True)], abs=0.011)
    run = runs["ResNet-20", "ISDA", 1]
    page.locator("#table-networks td[data-cell=resnet-20--isda] a").click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator("code").all_inner_texts() == [
        "python train.py dataset=digits model=resnet20 loss=isda seed=2"
    ]
    dialog.locator("tbody a", has_text=run.run_id).click()
    until(page, f"document.querySelector('dialog h2').textContent === '{run.run_id}'")
    until(page, "document.querySelector('dialog .main-svg') !== null")
    text = dialog.inner_text()
    assert "python train.py dataset=digits model=resnet20 loss=isda seed=1" in text
    assert HOSTILE in text
    assert re.search(r"loss.lambda_0\s+0.5", text)
    assert re.search(r"test error, mean of the last 10 epochs\s+\d+\.\d\d%", text)
    assert "undefined" not in text
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog').open && location.hash === ''")


def test_curves_of_covariances_are_drawn_for_the_runs_that_have_them(opened):
    page = opened()
    select = page.locator("select[name=curve]")
    assert select.locator("option").all_text_contents()[4:] == ["ISDA: added term / margin"], "no run has the others"
    select.select_option("covariances/ratio")
    until(page, "document.querySelectorAll('.panel .legend li button').length === 3")
    until(page, DRAWN)
    assert page.locator(".legend li button").all_inner_texts() == ["isda"] * 3
    means = page.evaluate("[...document.querySelector('.panel .plot').data].filter(t => t.customdata).map(t => t.y)")
    assert len(means) == 1
    assert means[0][1:4] == pytest.approx([0.015, 0.03, 0.045])
    assert page.locator(".panel .plot").first.inner_text().count("ISDA's added term / margin") == 1
    assert page.locator("table.runs tbody tr").count() == 6


def test_sorting_and_filtering_by_keyboard_and_pointer_change_what_is_shown(opened):
    page = opened()
    heading = page.locator("#table-networks th[scope=col]", has_text="CE").first
    button = heading.locator("button")
    first = "[...document.querySelector('#table-networks table').tBodies].map(body => body.rows[0].cells[0].innerText)"
    shown = []
    for press in (button.click, lambda: button.press("Enter"), button.click):
        press()
        shown.append((heading.get_attribute("aria-sort"), page.evaluate(first)))
    assert shown == [
        ("ascending", ["ResNet-20", "ResNet-32", "ResNet-8"]),
        ("descending", ["ResNet-8", "ResNet-32", "ResNet-20"]),
        (None, ["ResNet-8", "ResNet-20", "ResNet-32"]),
    ]
    page.locator("table.runs th", has_text="Last epoch").locator("button").press("Enter")
    errors = [float(text) for text in page.locator("table.runs tbody tr td:nth-child(2)").all_inner_texts()]
    assert errors == sorted(errors)
    for choice, use in (("resnet20", lambda box: box.check()), ("isda", lambda box: box.press("Space"))):
        use(page.get_by_label(choice, exact=True))
    assert page.locator(".panel h3").all_inner_texts() == ["resnet20, digits"]
    assert page.locator(".legend li button").all_inner_texts() == ["isda"]
    assert page.locator("table.runs tbody tr").count() == 2
    page.get_by_role("button", name="Reset", exact=True).click()
    until(page, "document.querySelectorAll('.panel').length === 3")
    until(page, DRAWN)
    plot = "document.querySelector('.panel .plot')"
    assert page.evaluate(f"[{plot}._fullLayout.yaxis.type, {plot}.data.length]") == ["log", 6]  # two means with bands
    page.locator("select[name=axis]").select_option("linear")
    page.locator("select[name=seeds]").select_option("lines")
    until(page, f"{plot}?._fullLayout?.yaxis.type === 'linear' && {plot}.data.length === 7")  # 2 means, 3 and 2 seeds
    page.locator(".legend button").first.press("Space")
    until(page, f"{plot}.data.length === 3")


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_a_phone_does_not_scroll_sideways_and_follows_the_scheme(opened, scheme, is_dark):
    phone = {"viewport": {"width": 375, "height": 812}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    page = opened("#networks/resnet-8--isda", **phone)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [375, 375]
    assert page.evaluate("document.querySelector('dialog[open]').scrollWidth <= 375")
    page.keyboard.press("Escape")
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number))"
    line = "document.querySelector('.panel .plot').data.at(-1).line.color"
    before = page.evaluate(line)
    assert (page.evaluate(brightness) < 60) is is_dark
    wanted = "light" if is_dark else "dark"
    while page.locator("button.theme .which").text_content() != wanted:
        page.locator("button.theme").click()
    assert (page.evaluate(brightness) < 60) is not is_dark
    until(page, f"{line} !== '{before}'")
    assert page.evaluate("localStorage.theme") == wanted
    # Chromium loses localStorage of 1 in 20 documents with file: addresses (none with http:), so it is set again.
    page.add_init_script(f"localStorage.theme = '{wanted}'")
    page.reload()
    assert (page.evaluate(brightness) < 60) is not is_dark


def test_paper_has_all_panels_and_rows_and_no_column_is_cut(browser, tmp_path, composed, leave):
    path = tmp_path / "wide.yaml"
    strengths = ", ".join(f"{value}: loss.lambda_0={value}" for value in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9))
    path.write_text(WIDE.replace("STRENGTHS", strengths))
    found = evidence([str(path)], composed, tmp_path / "runs", tmp_path / "results")
    for run in found.runs.values():
        leave(tmp_path, run)
    for number in range(13):
        settings = {**run.settings, "recipe": {**run.settings["recipe"], "lr": 0.013 * (number + 1)}}
        for seed in range(3):
            own = {key: value for key, value in settings.items() if key != "run_id"} | {"seed": seed}
            leave(tmp_path, Run(seed, config.run_id(own), own))
    found = evidence([str(path)], composed, tmp_path / "runs", tmp_path / "results")
    (tmp_path / "report.html").write_text(render(found, tmp_path / "runs", tmp_path / "results"))
    page = browser.new_page(viewport={"width": 700, "height": 900})  # the width of A4 without margins
    page.set_default_timeout(120_000)
    page.goto((tmp_path / "report.html").as_uri())
    until(page, DRAWN)
    shown = "[document.querySelectorAll('.panel').length, document.querySelectorAll('.runs tbody tr').length]"
    assert page.evaluate(shown) == [12, 50]
    page.evaluate("document.querySelectorAll('.legend button')[0].click()")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(shown) == [14, 63]
    assert page.evaluate(DRAWN), "at once, as the browser does not wait"
    right = "const right = (node) => node.getBoundingClientRect().right;"
    columns = "Math.max(...[...document.querySelectorAll('th, td')].map(right))"
    assert page.evaluate(f"() => {{ {right} return {columns} }}") <= 700
    beyond = "document.querySelectorAll('.panel .main-svg')].map(plot => right(plot) - right(plot.closest('.panel')))"
    assert page.evaluate(f"() => {{ {right} return Math.max(...[...{beyond}) }}") <= 0, "no plot is over another"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    until(page, "document.querySelector('.panel .main-svg').clientWidth > 600")
    assert page.evaluate(shown) == [12, 50]
    assert page.locator(".legend button").first.get_attribute("aria-pressed") == "false"
    page.close()


def test_no_axis_goes_beyond_an_error_of_100(browser, tmp_path, rendered, runs, leave):
    errors = [99.0] * 30
    curves = dict.fromkeys(("test_error", "test_loss", "train_error", "train_loss"), errors) | {"lr": [0.05] * 30}
    leave(
        tmp_path,
        runs["ResNet-20", "CE", 0],
        curves=curves,
        test_error_last10=99.0,
        test_error_final=99.0,
        test_error_best=99.0,
    )
    (tmp_path / "report.html").write_text(rendered(tmp_path))
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto((tmp_path / "report.html").as_uri())
    until(page, DRAWN)
    low, high = page.evaluate("document.querySelector('.panel .plot')._fullLayout.yaxis.range")
    assert high == 2
    assert low < 1.8
    page.close()


def test_a_panel_takes_any_number_of_lines_and_runs_of_any_length(browser, tmp_path, rendered, runs, leave):
    """Results of strangers may be so: a sweep over a hundred strengths, and seeds with fewer epochs than others."""
    run = runs["ResNet-20", "ISDA", 0]
    for number in range(110):
        settings = {**run.settings, "loss": {**run.settings["loss"], "lambda_0": 0.01 * number + 0.005}}
        settings.pop("run_id")
        leave(tmp_path, Run(0, config.run_id(settings), settings))
    other = runs["ResNet-20", "ISDA", 2]
    curves = {name: [5.0, 4.0, 3.0] for name in ("test_error", "test_loss", "train_error", "train_loss", "lr")}
    leave(tmp_path, other, epochs=3, curves=curves, test_error_last10=4.0, test_error_final=3.0, test_error_best=3.0)
    leave(tmp_path, runs["ResNet-20", "ISDA", 1])
    (tmp_path / "report.html").write_text(rendered(tmp_path))
    page, said = browser.new_page(), []
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "report.html").as_uri())
    until(page, DRAWN)
    assert said == []
    assert page.evaluate("document.querySelector('.panel .plot').data.every(one => one.y.every(Number.isFinite))")
    assert page.locator(".panel .legend li button").count() == 111
    page.close()
