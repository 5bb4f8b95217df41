"""The page about finished runs: what it shows, that nothing in it acts or loads, and how it looks in a browser."""

import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browsers import chromium
from finished_runs import PilotRun, answer, write_run
from recorded_events import cadence, record

from tools.compare.comparison import compare
from tools.plots.drawing import Drawing
from tools.report.__main__ import main
from tools.report.build import SCRIPT
from tools.report.sections import SECTIONS, progression
from utils.runs.predictions import read_mistakes, save_mistakes

ROWS = ([[90], [80, 70], [60, 65, 75]], [[88], [79, 72], [63, 60, 77]])
NESTED = {"ffn_adapter_type": "nested_lora", "nested_lora_update_interval_slow": 5}
HEADINGS = [
    "Summary",
    "Accuracy curves",
    "Classes",
    "Accuracy matrices",
    "Time scales over steps and tasks",
    "Cadence",
    "Consolidation",
    "Expansion",
    "Configurations",
    "Runs and legend",
]


class Elements(HTMLParser):
    """Keeps all tags with their attributes, and the text outside of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def nested_runs(folder: Path) -> list[Path]:
    runs = [write_run(folder, "nested", seed, rows, **NESTED) for seed, rows in enumerate(ROWS, 1)]
    for seed, run in enumerate(runs):
        record(run, tasks=3, seed=seed)
        answer(run, [f"class with the name {number}" for number in range(30)])
    return runs


def plain_runs(folder: Path) -> list[Path]:
    return [write_run(folder, "plain", seed, rows, batch_size=64) for seed, rows in enumerate(ROWS, 1)]


def write_page(runs: list[Path], *more: str) -> str:
    file = runs[0].parent / "report.html"
    assert main([*map(str, runs), "-o", str(file), *more]) == 0
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [*nested_runs(folder), *plain_runs(folder)]


@pytest.fixture(scope="module")
def page(runs) -> str:
    return write_page(runs, "--baseline", "plain")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """For tests of what stands beside the charts, which take nearly all of the time."""
    monkeypatch.setattr(Drawing, "svg", lambda self, prefix, width, style: f'<svg class="{style}"></svg>')


def headings(page: str, level: int) -> list[str]:
    return re.findall(rf"<h{level}>(.*?)</h{level}>", page)


def section(page: str, key: str) -> str:
    return page.split(f'<section id="{key}">')[1].split("</section>")[0]


def figures(page: str) -> list[str]:
    """The charts."""
    return re.findall(r"<figure class.*?</figure>", page, re.DOTALL)


def test_all_sections_are_there_with_their_figures_and_tables(page):
    assert headings(page, 2) == HEADINGS
    found = {key: len(figures(section(page, key))) for key in ("accuracy", "time-scales", "consolidation")}
    assert found == {
        "accuracy": 1 + 1 + 2,
        "time-scales": 7,
        "consolidation": 1,
    }  # new and old tasks; each task of both
    assert len(figures(section(page, "matrices"))) == 1 + 1 + 3  # equal ones once; of the branches, curves too
    assert len(figures(section(page, "expansion"))) == 2 + 1  # nested runs were scanned; all have equal adapters
    assert "nested = plain: accuracy matrix" in section(page, "matrices")
    assert "nested: slow only = fast only" in section(page, "matrices")
    assert "batch_size" in section(page, "configurations")


def test_the_summary_is_the_comparison_with_its_warnings(page):
    summary = section(page, "summary")
    assert "only 2 seeds" in summary
    assert "Difference to plain on equal seeds" in summary
    assert "baseline is plain" in page


def test_the_summary_opens_with_what_can_be_concluded(page):
    summary = section(page, "summary")
    assert summary.index("What can be concluded: differences to plain") < summary.index("Warnings")
    assert "nested: the same accuracies as the baseline on every seed." in summary


@pytest.mark.usefixtures("undrawn")
def test_curves_of_one_class_order_say_so(tmp_path):
    page = write_page([write_run(tmp_path, "a", seed, ROWS[0], shuffle=False) for seed in (1, 2)])
    assert "All seeds share one class order: the spread over seeds" in section(page, "accuracy")
    assert "over seeds, all with one class order" in section(page, "summary")


def test_numbers_are_those_of_the_runs(page):
    assert "nested ends at 66.7 %" in section(page, "accuracy")  # 200 of 300 in either seed
    matrix = section(page, "matrices").split("<svg")[1].split("</svg>")[0]
    cells = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<text[^>]*>(.*?)</text>", matrix)]
    assert {"89", "80", "71", "62", "76"} <= set(cells)  # means over two seeds, half to even
    steps = section(page, "cadence")
    assert "<td>slow</td><td>3</td><td>120</td><td>24</td><td>24</td><td>yes</td>" in steps
    assert "<td>6.5 → 0.75</td><td>2 → 0.5</td><td>61.25 → 60.50</td>" in section(page, "consolidation")
    assert "Dashed: the threshold, 1.5. 8 batches were scanned; 1 of them" in section(page, "expansion")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("weights", "shown"),
    [
        ("hub", "vit_x"),
        ("random", "vit_x with random weights, SHA-256 dddddddddddd"),
        ("/data/of mine/w.safetensors", "vit_x with weights of w.safetensors, SHA-256 dddddddddddd"),
    ],
)
def test_the_backbone_is_named_with_the_file_of_its_weights(tmp_path, weights, shown):
    backbone = {"timm_name": "vit_x", "weights": weights, "sha256": "d" * 64}
    page = write_page([write_run(tmp_path, "x", 1, ROWS[0], environment={"backbone": backbone})])
    assert f">{shown}</td>" in section(page, "runs")


def test_a_page_of_one_seed_speaks_of_no_mean(tmp_path):
    run = nested_runs(tmp_path)[0]
    page = write_page([run]).split('<section id="time-scales">')[0]
    assert "Measures of one seed; accuracies in per cent" in page
    assert re.search("standard deviation|[Mm]ean over seeds?", page) is None
    assert "mean over seeds 1, 2" in write_page([run, *run.parent.glob("nested-*-s2")])


@pytest.mark.usefixtures("undrawn")
def test_a_failed_cadence_says_so(tmp_path):
    run = write_run(tmp_path, "nested", 1, ROWS[0], **NESTED)
    free = write_run(tmp_path, "free", 1, ROWS[0], **NESTED, nested_lora_slow_update="zero_grad")
    for path, event in (
        (run, cadence(0, 12, 5, observed=[5, 11])),
        (run, cadence(1, 12, 5)),
        (free, {**cadence(1, 12, 5), "expected": None}),
    ):
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
    page = write_page([run, free])
    shown = section(page, "cadence")
    assert "NO: 1 of 2 phases differ" in shown
    assert "<td>5, 10</td><td>5, 11</td><td>NO</td>" in shown
    assert "<td>not stated</td><td>5, 10</td><td>not judged</td>" in shown
    assert "metrics.jsonl: the cadence audit failed in task 0 cycle 0" in section(page, "summary")


@pytest.mark.usefixtures("undrawn")
def test_updates_without_a_gradient_are_said(tmp_path):
    run = write_run(tmp_path, "nested", 1, ROWS[0], **NESTED)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**cadence(0, 12, 5, observed=[5]), "passed": True, "idle": [9, 10]}) + "\n")
    shown = section(write_page([run]), "cadence")
    assert re.search("<td>2</td><td>1</td><td[^>]*>yes, without a gradient or decay at 1</td>", shown)
    assert "<td>5, 10</td><td>5</td><td>yes</td>" in shown


@pytest.mark.usefixtures("undrawn")
def test_a_receipt_of_a_version_without_z_is_shown_without(tmp_path):
    run = write_run(tmp_path, "nested", 1, ROWS[0], **NESTED)
    record(run, tasks=3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for receipt in (receipt for line in lines for receipt in line.get("receipts", [])):
        for key in [key for key in receipt if key.startswith("z_")]:
            del receipt[key]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = section(write_page([run]), "consolidation")
    assert "<td>3.2 → 3.4</td><td>61.25 → 60.50</td>" in shown
    assert "mean of z" not in shown


@pytest.mark.usefixtures("undrawn")
def test_sections_without_events_say_so_in_a_sentence(tmp_path):
    page = write_page(plain_runs(tmp_path))
    assert headings(page, 2) == HEADINGS
    for key, sentence in {
        "classes": "No run has predictions.",
        "matrices": "No run has matrices of single branches",
        "time-scales": "No run has telemetry events",
        "cadence": "No run has cadence events",
        "consolidation": "No run has consolidation events",
        "expansion": "No run has scan events",
        "configurations": "There is one configuration",
    }.items():
        assert sentence in section(page, key)


@pytest.mark.usefixtures("undrawn")
def test_a_log_file_takes_part(tmp_path):
    log = tmp_path / "other_1.log"
    log.write_text(PilotRun([[400], [350, 380]], [5, 5], dataset="cub", seed=[1]).text())
    page = write_page([*plain_runs(tmp_path), log])
    assert "other" in section(page, "summary")
    assert "seed 1" in section(page, "runs")


def test_a_learner_without_adapters_has_no_figure_of_them(tmp_path):
    parameters = {"head": 10, "backbone": 900, "total": 910}
    page = write_page([write_run(tmp_path, "plain", 1, ROWS[0], adapters=[], parameters=parameters)])
    assert figures(section(page, "expansion")) == []
    assert "<td>10</td>" in section(page, "summary")


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_is_no_run_is_left_out_and_said(tmp_path):
    (tmp_path / "sweeps").mkdir()
    page = write_page([*plain_runs(tmp_path), tmp_path / "sweeps"])
    assert f"{tmp_path / 'sweeps'}: left out, it is not a run directory" in section(page, "summary")


ATTACK = (
    "<script>alert(1)<!script> \" onload=alert(1) x=' --><svg onload=alert(1)> ]]><img src=x onerror=alert(1)> "
    "&lt;b&gt;<!title><!style><b> {style}{0}%s $1 x$ \u2028\x1b[31m"
)


def page_of(folder: Path, text: str) -> Elements:
    """A page about a run and a log which say `text` wherever a run or a log can say a text of its own."""
    keys = {"prefix": text, "output_dir": text, "backbone_type": text, "backbone_kwargs": {text: [text, {text: text}]}}
    said = {"command": text, "commit": text, "device": text, "backbone": {"timm_name": text, "sha256": text}}
    run = write_run(folder / text, f"r{text}", 1, ROWS[0], environment=said, **keys, **NESTED)
    record(run, tasks=3)
    answer(run, [text, *(f"{text}{number}" for number in range(29))])
    save_mistakes(run, [mistake._replace(name=text) for mistake in read_mistakes(run) or []])
    events = (run / "metrics.jsonl").read_text().replace('"weights"', json.dumps(text))  # the mode of consolidation
    (run / "metrics.jsonl").write_text(events)
    log = folder / f"l{text}.log"
    damaged = f"CNN: {{'total': {text}\nCNN top1 curve: [{text}\n"
    log.write_text(PilotRun([[400], [350, 380]], [5, 5], dataset=text, **{"note": text}).text() + damaged)
    return Elements(write_page([run, log], "--baseline", str(log)))


def shape(elements: Elements) -> set[tuple[str, str]]:
    """Every kind of element with every attribute it has."""
    return {(tag, key) for tag, attributes in elements.tags for key in ["", *attributes]}


def test_no_text_of_a_run_or_a_log_becomes_an_element_or_an_attribute(tmp_path):
    benign, attacked = page_of(tmp_path / "a", "plain" * 20), page_of(tmp_path / "b", ATTACK)  # both are long cells
    assert shape(attacked) == shape(benign)
    assert attacked.text.count(ATTACK) > 10
    assert not {"iframe", "object", "embed"} & {tag for tag, _ in attacked.tags}
    assert [attributes for tag, attributes in attacked.tags if tag == "script"] == [{}]
    links = {value for _, a in attacked.tags for key, value in a.items() if key in ("href", "xlink:href", "src")}
    own = r"data:,|#[\w-]+|data:image/(jpeg|png);base64,[A-Za-z0-9+/=\s]+"
    assert all(re.fullmatch(own, value or "") for value in links)
    (policy,) = (a["content"] or "" for a in attacked.all("meta") if "http-equiv" in a)
    hashed = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith(f"script-src 'sha256-{hashed}'")


def test_figures_stay_in_their_folder_whatever_runs_are_called(tmp_path):
    """A sweep calls configurations what its file says."""
    comparison = compare(plain_runs(tmp_path))
    hostile = replace(comparison, groups=[replace(comparison.groups[0], name="../../../x/..\\y\0\n")])
    names = [drawing.name for section in SECTIONS for drawing in section(hostile).drawings]
    assert len(names) == 5
    assert all(re.fullmatch(r"[\w-]+", name) for name in names)


def test_nothing_is_loaded(page):
    elements = Elements(page)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # of namespaces, in charts that are saved
    assert set(re.findall(r"https?://[^\"]*|@import|//cdn", page)) == names
    addresses = {value for _, a in elements.tags for key in ("src", "href", "xlink:href") if (value := a.get(key))}
    assert all(re.match(r"#|data:,$|data:image/(png|jpeg);base64,", value) for value in addresses)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_used_once_and_links_lead_somewhere(page):
    elements = Elements(page)
    ids = [a["id"] for _, a in elements.tags if "id" in a]
    links = [
        value[1:] for _, a in elements.tags for key in ("href", "xlink:href") if (value := a.get(key)) and "#" in value
    ]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)


def test_figures_are_described(page):
    drawings = Elements(page).all("svg")
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in drawings)
    assert page.count("<figcaption>") == len(figures(page)) + len(Elements(page).all("img"))
    assert all(a["alt"] for a in Elements(page).all("img"))


def test_every_page_width_shows_every_figure_once(page):
    found = figures(page)
    shown = [re.findall(r'<svg [^>]*class="(\w+)"', figure) for figure in found]
    assert all(classes in (["any"], ["wide", "small"]) for classes in shown)
    assert len(found) == sum(map(len, shown)) - shown.count(["wide", "small"])


def test_the_page_is_the_same_in_another_process(runs, page, tmp_path):
    file = tmp_path / "again.html"
    command = [sys.executable, "-m", "tools.report", *map(str, runs), "--baseline", "plain", "-o", str(file)]
    subprocess.run(command, check=True, timeout=100, capture_output=True)
    assert file.read_text(encoding="utf-8") == page


def test_the_figures_are_written_for_papers_and_the_same_every_time(tmp_path):
    runs = plain_runs(tmp_path)
    page = write_page(runs, "--figures", str(tmp_path / "a"))
    assert write_page(runs, "--figures", str(tmp_path / "b")) == page
    written = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    assert len(written) == 3 * len(figures(page)) > 0
    begins = {"pdf": b"%PDF", "png": b"\x89PNG", "csv": b""}
    assert all(content.startswith(begins[name.rpartition(".")[2]]) for name, content in written.items())
    (each,) = (content for name, content in written.items() if name.endswith("accuracy-on-each-task-plain.csv"))
    assert each.decode().splitlines()[:2] == ["after learning task,task 0,task 1,task 2", "0,89,,"]


def test_progressions_are_short():
    assert progression([]) == "never"
    assert progression([1, 2]) == "1, 2"
    assert progression(range(5, 61, 5)) == "5, 10, ..., 60 (12)"
    assert progression([*range(1, 15), 99]) == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... (15)"


SCAN = {"kind": "scan", "task": 1, "scan": 0, "batch": 1, "z": {"3": [1.0]}, "threshold": 1.5, "expands": None}
CONSOLIDATION = {"kind": "consolidation", "task": 1, "accuracy_before": {"top1": 1}, "accuracy_after": {"top1": 1}}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"kind": "telemetry", "task": 0, "cycle": 0, "epoch": 0, "step": 1, "layers": [{}]}, "a telemetry event is"),
        ({"kind": "telemetry", "task": 0}, "line 4: telemetry event: "),
        ({"kind": "cadence", "task": "x"}, "cadence event"),
        ({**SCAN, "z": [3]}, "scan event: z = [3]"),
        ({**CONSOLIDATION, "receipts": None}, "consolidation event: receipts = null"),
    ],
)
def test_a_damaged_event_is_named(tmp_path, capsys, event, message):
    run = write_run(tmp_path, "nested", 1, ROWS[0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    assert main([str(run), "-o", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(run) in error


def test_what_cannot_be_read_or_written_is_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "-o", str(tmp_path / "report.html")]) == 2
    assert "no such run" in capsys.readouterr().err
    run = write_run(tmp_path, "plain", 1, ROWS[0])
    (tmp_path / "file").write_text("")
    assert main([str(run), "-o", str(tmp_path / "file" / "report.html")]) == 2
    assert capsys.readouterr().err.startswith("cannot be written: ")


def test_torch_is_not_imported():
    check = "import sys, tools.report.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary, driver = chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    window = webdriver.Chrome(options, Service(driver))
    yield window
    window.quit()


def requests(browser) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_errors_requests_or_overflow(browser, page, runs, tmp_path, width, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser"), browser.get_log("performance")  # empties both
    address = (runs[0].parent / "report.html").as_uri()
    browser.get(address)
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if not url.startswith("data:")] == [address]
    browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(BEYOND, width) == []
    assert browser.execute_script(OVERPRINTED) == []
    assert browser.execute_script(OVERLAPPING) == []
    assert browser.execute_script(UNSAID) == []
    assert browser.execute_script(CLIPPED) == []
    assert browser.execute_script(UNFILLED) == 0
    ground, ink = browser.execute_script(COLOURS)
    assert (sum(ground) > sum(ink)) == (scheme == "light")
    assert browser.save_screenshot(str(tmp_path / f"{scheme}-{width}.png"))


BEYOND = """return [...document.querySelectorAll('h1, h2, h3, p, li, figure, svg, .scroll')]
    .filter(e => e.getBoundingClientRect().right > arguments[0] + 1).map(e => e.tagName)"""
OVERPRINTED = """return [...document.querySelectorAll('th, td')]
    .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)"""
OVERLAPPING = """const found = [];
    for (const svg of document.querySelectorAll('svg')) {
        const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
        texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
            if (p.width && p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 2 && q.top < p.bottom - 2)
                found.push(`${a} | ${b}`);
        }));
    }
    return found"""
UNSAID = """return [...document.querySelectorAll('.scroll')]
    .filter(box => {
        const said = box.previousElementSibling.textContent.includes('More columns');
        return said !== (box.scrollWidth > box.clientWidth + 1);
    }).map(box => box.ariaLabel)"""
CLIPPED = """return [...document.querySelectorAll('svg text')].filter(text => {
        const label = text.getBoundingClientRect(), chart = text.closest('svg').getBoundingClientRect();
        return label.width && (label.left < chart.left - 1 || label.right > chart.right + 1
            || label.top < chart.top - 1 || label.bottom > chart.bottom + 1);
    }).map(text => text.textContent)"""
UNFILLED = """return [...document.querySelectorAll('.drawings')].filter(box => {
        const rows = {};
        for (const figure of box.querySelectorAll('figure')) {
            const place = figure.getBoundingClientRect();
            rows[place.top] = Math.max(rows[place.top] || 0, place.right);
        }
        return Object.values(rows).some(right => right < box.getBoundingClientRect().right - 1);
    }).length"""
COLOURS = """const style = getComputedStyle(document.body), text = getComputedStyle(document.querySelector('svg text'));
    return [style.backgroundColor, text.fill].map(colour => colour.match(/\\d+/g).slice(0, 3).map(Number))"""


@pytest.mark.slow
def test_in_a_browser_charts_are_saved_tables_copied_and_sorted(browser, page, runs, tmp_path):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    metrics = {"width": 1400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.get((runs[0].parent / "report.html").as_uri())
    press = "[...document.querySelectorAll(arguments[0] + ' button')].find(b => b.textContent === arguments[1]).click()"
    for name in ("accuracy", "confusion-matrix-nested"):
        browser.execute_script(press, f"[data-name={name}]", "Save as SVG")
        file = tmp_path / f"{name}.svg"
        wait_for(file.exists)
        chart = ET.fromstring(file.read_text(encoding="utf-8"))
        assert chart.tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search("var\\(|currentColor", file.read_text(encoding="utf-8"))
        assert "#24292f" in file.read_text(encoding="utf-8")  # the ink of the light page

    spied = "window.copied = []; navigator.clipboard.writeText = async text => { window.copied.push(text); };"
    browser.execute_script(spied)
    browser.execute_script(press, "[data-name=accuracy]", "Copy table")
    (copied,) = wait_for(lambda: browser.execute_script("return window.copied"))
    header, first, *_ = copied.splitlines()
    assert header.split("\t")[:3] == ["after learning task", "nested", "nested, lower edge"]
    assert [float(cell) for cell in first.split("\t")[:2]] == [0, 89]  # 90 and 88 of 100

    column = "return [...document.querySelectorAll('#classes table')].at(-1)"
    order = f"{column.replace('return', 'const t =')}; t.tHead.rows[0].cells[4].click();"
    order += "return [...t.tBodies[0].rows].map(row => row.cells[4].textContent)"
    accuracies = [[float(cell) for cell in browser.execute_script(order)] for _ in range(2)]
    assert accuracies[0] == sorted(accuracies[0]) == accuracies[1][::-1]
    assert len(set(accuracies[0])) > 1


def wait_for(found):
    """Wait until a function returns something true, and return that."""
    deadline = time.monotonic() + 20
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
