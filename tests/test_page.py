"""report.html in a real browser: offline, sorted, hidden, hovered over, in the dark; and what its sentences say."""

import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest

import plots
from comparison import svg
from comparison.autotuning import find_tuners
from comparison.page import read_definitions, to_html
from comparison.report import write_comparison
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.tables import Table
from comparison.verdict import verdict
from measurement.pipelines.spans import Span, read_trace, write_trace
from tests.shared.made_up_runs import write_run, write_seeds

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = {"script": "<script>document.title='taken'</script>", "quotes": "\"it's\" <b>&amp;</b> `code`",
           "long": "x" * 500, "right-to-left": "\u05e9\u05dc\u05d5\u05dd \u202e abc"}
SPANS = [Span(0, 0, "forward", 0, 0.0, 0.01), Span(0, 0, "send", 0, 0.01, 0.012),
         Span(0, 1, "forward", 0, 0.012, 0.02), Span(0, 1, "backward", 0, 0.02, 0.04, 1)]


def report(root):
    """Writes the report of the runs in a folder and returns its path."""
    rows, members = compare(find_runs(root, plots.STUDY), plots.STUDY)
    write_comparison(rows, members, root, plots.STUDY, find_tuners(root), [])
    return root / "report.html"


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "results"
    write_run(root / "one", throughput=50, validation_loss=2.0, curves=True)
    write_run(root / "two", devices=2, throughput=98, validation_loss=1.9, curves=True)
    write_trace(SPANS, write_run(root / "pipe", "pipeline", 2, throughput=975, validation_loss=2.2,
                                 curves=True) / "timeline.json")
    for name, text in HOSTILE.items():
        write_run(root / name, text, 2, throughput=60, validation_loss=2.0, curves=True)
    return report(root)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "no Chromium: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, page_path):
    """The report, opened offline; the test fails if the browser complains or asks for anything else."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page_path.as_uri())
    yield opened
    assert said == [] and asked == [page_path.as_uri()]
    context.close()


# ---------------------------------------------------------------- in the browser

def column(page, title):
    """The cells of the first table's column with this title, and its button."""
    table = page.locator(".group table").first
    place = next(number for number, head in enumerate(table.locator("th[scope=col]").all())
                 if head.inner_text().startswith(title))
    button = table.locator("th[scope=col] button").nth(place)
    return button, lambda: [row.locator("th, td").nth(place).inner_text() for row in table.locator("tbody tr").all()]


def number(cell):
    return float(cell.split()[0])


def test_a_click_sorts_by_number_and_a_second_one_the_other_way(page):
    button, cells = column(page, "throughput")
    button.click()
    values = [number(cell) for cell in cells()]
    assert values == sorted(values, reverse=True) and values[0] == 975
    button.click()
    assert [number(cell) for cell in cells()] == values[::-1]


def test_the_keyboard_sorts_and_words_are_sorted_as_words(page):
    button, cells = column(page, "setting")
    button.focus()
    page.keyboard.press("Enter")
    assert cells()[0].startswith(("\"it's\"", "<script>", "1 device")) and len(cells()) == 7
    assert button.locator("xpath=..").get_attribute("aria-sort") == "ascending"


def test_what_only_begins_like_a_number_is_sorted_as_words(page):
    numbers = ["1,234 (+5.0%)", "-0.5", "1e+03 to 2", "0.87 (0.82 to 0.94)", "36.2 †", "∞"]
    words = ["2026-11-30T18:01:12", "2.13.0+cpu", "3f9ab2", "a1b2c3", "DDP"]
    found = page.evaluate("texts => texts.map((text) => !isNaN(numberIn(text)))", numbers + words)
    assert found == [True] * len(numbers) + [False] * len(words)


def test_a_columns_definition_shows_when_hovered_over_or_focused(page):
    button, _ = column(page, "throughput")
    tip = button.locator(".tip")
    assert not tip.is_visible()
    button.hover()
    assert tip.is_visible() and "wall time" in tip.inner_text()


def test_a_row_can_be_switched_off_in_every_figure(page):
    button = page.locator(".legend button", has_text="DDP x 2").first
    row = button.get_attribute("data-row")
    parts = page.locator(f'figure [data-row="{row}"]')
    assert parts.count() >= 4 and parts.first.is_visible()
    button.click()
    assert not any(part.is_visible() for part in parts.all()) and button.get_attribute("aria-pressed") == "false"
    button.click()
    assert parts.first.is_visible()


def test_a_timeline_widens_and_its_text_does_not(page):
    drawing = page.locator("svg.timeline").first
    number, before = drawing.locator("text.number").first, drawing.bounding_box()["width"]
    letter = number.bounding_box()["width"]
    page.locator(".zoom button", has_text="wider").first.click()
    assert drawing.bounding_box()["width"] == pytest.approx(2 * before, rel=0.01)
    assert number.bounding_box()["width"] == pytest.approx(letter)


def test_names_from_runs_are_text(page):
    names = [cell.inner_text() for cell in page.locator(".group table").first.locator("tbody th").all()]
    for text in ("<script>document.title='taken'</script>", "\"it's\" <b>&amp;</b> `code`", "x" * 500):
        assert any(text in name for name in names)
    assert page.title() == "Comparison of training runs" and page.locator("script").count() == 1


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_the_page_does_not_scroll_sideways(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for selector in ("p", "td", "figcaption", "thead button", ".legend button", "svg .tick", ".verdict li"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """element => {
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const style = getComputedStyle(element);
    const ink = numbers(element instanceof SVGElement ? style.fill : style.color);
    let behind = element;
    while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const paper = behind ? numbers(getComputedStyle(behind).backgroundColor) : [255, 255, 255];
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""


@pytest.mark.alone
def test_a_hundred_runs_stay_small_and_open_within_a_second(browser, tmp_path):
    samples = 32 * np.arange(1, 2001)
    for number in range(100):
        folder = write_run(tmp_path / f"run{number}", "pipeline" if number % 2 else "ddp", 1 + number % 4,
                           throughput=50 + number, validation_loss=2.0, curves=True, seed=number // 8,
                           learning_rate=number)
        pd.DataFrame({"samples": samples, "elapsed_s": samples / 50, "train_loss": 5 - samples / 2e4}).to_csv(
            folder / "steps.csv", index=False)
        write_trace(40 * SPANS, folder / "timeline.json")
    path = report(tmp_path)
    assert path.stat().st_size < 3e6
    opened = browser.new_page()
    opened.goto(path.as_uri())
    assert opened.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") < 1000


# ---------------------------------------------------------------- its parts

def test_definitions_are_those_of_the_documentation():
    found = read_definitions()
    missing = [metric.column for metric in plots.STUDY.metrics if metric.column not in found]
    assert missing == [] and "`" not in "".join(found.values())


def test_markdown_becomes_what_it_looks_like():
    assert to_html("### A `b` & c", {}) == "<h3><bdi>A <code>b</code> &amp; c</bdi></h3>"
    assert to_html("- one\n  more\n- two", {}) == "<ul><li><bdi>one more</bdi></li><li><bdi>two</bdi></li></ul>"
    table = to_html(Table([["setting", "<i>"], ["loss", "1"]], ("", "loss")), {"loss": "a & b"})
    assert "&lt;i&gt;" in table and "a &amp; b" in table and table.count("<th") == 4  # thead and three cells


def test_a_curve_keeps_its_mean_and_ends_when_it_is_thinned():
    curve = np.column_stack([np.arange(1500.0), np.arange(1500.0) ** 2])
    thin = svg.thinned(curve)
    assert len(thin) == 150 and thin.mean(axis=0) == pytest.approx(curve.mean(axis=0))
    assert svg.thinned(curve[:20]) is not None and len(svg.thinned(curve[:20])) == 20


def test_a_timeline_that_was_written_is_read(tmp_path):
    write_trace(SPANS, tmp_path / "timeline.json")
    assert read_trace(tmp_path / "timeline.json") == SPANS
    for text in ("[]", "{}", '{"traceEvents": [1]}', "no"):
        (tmp_path / "timeline.json").write_text(text)
        with pytest.raises(ValueError):
            read_trace(tmp_path / "timeline.json")


def sentences(root):
    rows, members = compare(find_runs(root, plots.STUDY), plots.STUDY)
    return verdict(rows, members, plots.STUDY)


def test_one_seed_names_a_winner_and_says_what_that_is_worth(tmp_path):
    write_run(tmp_path / "a", devices=2, throughput=120, validation_loss=2.0)
    write_run(tmp_path / "b", "pipeline", 2, throughput=100, validation_loss=2.0)
    fastest, losses, *unknown = sentences(tmp_path)
    assert fastest == ("On 2 devices, DDP x 2 is the fastest, with 120 samples/s; 20.0 % ahead of the next, pipeline 2 "
                       "stages with 100 (one seed, and nothing was run twice: how far apart reruns would be is "
                       "unknown).")
    assert losses == "Every row ends with a validation loss of 2; the largest difference is 0 %."
    assert unknown == ["Not measured: GPU utilization, statistical efficiency, goodput (no run says why)."]


def test_several_seeds_give_an_interval(tmp_path):
    write_seeds(tmp_path, "a", [120, 122, 121], devices=2, validation_loss=2.0)
    write_seeds(tmp_path, "b", [100, 101, 102], "pipeline", 2, validation_loss=2.5)
    fastest, losses, *_ = sentences(tmp_path)
    assert re.search(r"ahead of the next, pipeline 2 stages with 101 \(95 % interval \+17\.\d to \+22\.\d %, 3 seeds"
                     r"\)\.", fastest)
    assert losses == "Validation losses go from 2 (DDP x 2) to 2.5 (pipeline 2 stages), 25 % apart."


def test_what_may_be_chance_says_so(tmp_path):
    write_seeds(tmp_path, "a", [120, 90, 121], devices=2)
    write_seeds(tmp_path, "b", [100, 101, 102], "pipeline", 2)
    assert sentences(tmp_path)[0].endswith("3 seeds), which may be chance.")


def test_a_winner_by_seeds_that_only_it_has_is_said_to_be_behind(tmp_path):
    write_seeds(tmp_path, "a", {0: 90, 1: 90, 2: 300}, devices=2)
    write_seeds(tmp_path, "b", {0: 100, 1: 100}, "pipeline", 2)
    assert "DDP x 2 is the fastest, with 160" in sentences(tmp_path)[0]
    assert "10.0 % behind the next, pipeline 2 stages with 100, on the seeds that both have" in sentences(tmp_path)[0]


def test_a_machine_that_changed_its_speed_is_named(tmp_path):
    write_run(tmp_path / "a", devices=2, throughput=120, machine_drift_pct=9)
    write_run(tmp_path / "b", "pipeline", 2, throughput=100)
    assert sentences(tmp_path)[0].endswith("the machine changed its speed under DDP x 2.")
    assert sentences(write_run(tmp_path / "c" / "one", throughput=5).parent)[0] == "On 1 device: 5.00 samples/s."
    assert sentences(write_run(tmp_path / "d" / "two", devices=2).parent)[0] == (
        "On 2 devices only DDP x 2 ran, with 50.0 samples/s.")
