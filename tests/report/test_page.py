"""The page itself: valid, self-contained, complete, and looked at by a browser where there is one."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from counterpoise.evaluation.estimate import Estimate
from counterpoise.report.content import CellPrompts, CellSamples, FilterExamples, PlanTable, PromptTable, gains
from counterpoise.report.format import p_value, percent, points
from counterpoise.report.page import depth, dot_scale, render, render_leaderboard

_VOID = {"meta", "img", "br", "hr", "link", "input"}
_EMPTY_SVG = {"line", "rect", "circle"}


class Page(HTMLParser):
    """Checks that every element is closed where it was opened, and collects what the page shows and refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        assert len(found) == len(attributes), f"an attribute twice in <{tag}>"
        self.references += [found[name] for name in ("src", "href", "srcset", "action", "poster") if found.get(name)]
        self.ids += [found["id"]] if "id" in found else []
        assert not [name for name in found if name.startswith("on")]
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append(found.get("class") or "")

    def handle_startendtag(self, tag, attributes):
        assert tag in _EMPTY_SVG
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


LONG = [f"a rather long class name, number {number}, of the kind that ImageNet has" for number in range(10)]
SHAPES = {
    "demo": {},
    "no effect": {"effect": 0.0},
    "no groups": {"groups": ()},
    "one method, one seed, no synthesis": {"methods": ("erm",), "seeds": 1, "samples": []},
    "no real-only baseline": {"methods": ("usb", "ffr")},
    "ten classes, four groups, long names": {
        "classes": LONG,
        "groups": ("male", "female", "not said", "d"),
        "shown": 40,
    },
    "a hundred classes": {"classes": [f"class {n}" for n in range(100)], "groups": (), "methods": ("erm", "ffr")},
    "nothing trained": {"methods": (), "summary": {}, "samples": []},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_of_report_is_a_valid_page_that_fetches_nothing(make_report, shape):
    report = make_report(**shape)
    html = render(report)
    page = Page(html)
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)
    for name in (*report.methods, *report.classes, *report.groups):
        assert name in page.text
    assert not re.search(r"\b(None|nan|Undefined)\b", page.text)
    assert len(html) < 4_000_000


def test_the_numbers_are_there(make_report):
    report = make_report()
    text = Page(render(report)).text
    for method in report.methods:
        for metric in ("worst_group_accuracy", "balanced_accuracy", "accuracy", "group_std"):
            mean, low, high = report.estimate(method, metric).to_json()
            assert f"{percent(mean)} {percent(low)} – {percent(high)}" in text
    for row in report.rows:
        low, high = row.intervals["accuracy"]
        assert f"{percent(row.metrics['accuracy'])} {percent(low)} – {percent(high)}" in text
    for value in ("5,888", "41.3 images sampled per second", "0f3c9a2be1d47788", "2 min 28 s", report.command):
        assert value in text


def test_realism_stands_beside_extractor_resizer_and_counts(make_report):
    html = render(make_report())
    text = Page(html).text
    for value in ("CLIP ViT-B-32", "512 numbers", "bicubic antialias 224", "5 neighbours", "at most 500 images"):
        assert value in text
    assert "all 500 480 12.3 0.874 73.1 % 74.2 %" in text
    assert "hexagon 500 1 – 0.874" in text
    assert 'title="needs 2 real and 2 synthetic images"' in html
    assert "How real" not in Page(render(make_report(methods=("erm",)))).text


def test_empty_short_unmeasured_and_worst_cells_are_marked(make_report):
    report = make_report(methods=("erm", "ffr"))
    cells = [" ".join(name.split()) for name in Page(render(report)).cells]
    assert sum("zero" in name for name in cells) == len(report.audit["empty_cells"])
    assert sum("short" in name for name in cells) == 1  # triangle × green, see make_report
    assert cells.count("none") == 3  # the cell without test images, for each method, and one without synthetic images
    assert sum("worst" in name for name in cells) == 3  # of each method, and the least pure


def test_what_each_filter_kept_out_and_how_pure_the_cells_are(make_report):
    html = render(make_report())
    page = Page(html)
    assert "93.1 % of the synthetic images" in page.text
    assert "87.5" in page.text
    for text in ("clip_margin rejected 14 images", "near_duplicate rejected 0 images", "clip_margin 0.012 < 0.02"):
        assert text in page.text
    assert "quarantined: one colour all over" in page.text
    unscored = dict(make_report().synthesis) | {"purity": None, "cell_purity": None}
    assert "CLIP puts" not in render(make_report(synthesis=unscored))
    assert 'id="filters"' not in render(make_report(synthesis=unscored, filtered=[]))


def test_a_page_says_what_was_tested_on(make_report):
    assert "On real test images that no method has seen" in Page(render(make_report())).text
    text = Page(render(make_report(tested_on="synthetic images of the plan p"))).text
    assert "On synthetic images of the plan p" in text
    assert "On real test images" not in text


def test_which_tensors_moved(make_report):
    report = make_report()
    last, seeds = report.methods[-1], {row.seed for row in report.rows}
    rows = [
        replace(row, moved={"conv.weight": row.seed == min(seeds), "fc.weight": True}) if row.method == last else row
        for row in report.rows
    ]
    text = Page(render(replace(report, rows=rows))).text
    assert f"2 tensors tensor {last} conv.weight 1 fc.weight {len(seeds)} all" in text
    assert "Trained parameters" in text
    assert "Trained parameters" not in Page(render(report)).text


def test_best_is_the_best_mean_in_its_direction(make_report):
    html = render(make_report(methods=("erm", "ffr")))
    best = re.findall(r'<td class="best">\s*([\d.]+)', html)
    report = make_report(methods=("erm", "ffr"))
    assert percent(report.estimate("ffr", "group_std").mean) in best  # less is better
    assert percent(report.estimate("ffr", "worst_group_accuracy").mean) in best
    assert percent(report.estimate("erm", "group_std").mean) not in best


def test_an_unknown_metric_is_shown_under_its_name_and_not_judged(make_report):
    report = make_report(methods=("erm", "ffr"))
    summary = {
        method: {**metrics, "calibration_error": Estimate(0.123, 0.1, 0.14, 3)}
        for method, metrics in report.summary.items()
    }
    html = render(make_report(methods=("erm", "ffr"), summary=summary))
    assert "calibration error" in html
    assert not re.search(r'class="best">\s*12\.3', html)


def test_plans_with_the_same_images_are_shown_once(make_report):
    html = render(make_report(methods=("erm", "asb", "ffr")))
    added = html[html.index('id="plans"') : html.index('id="results"')]
    assert added.count("<figure>") == 1
    assert "asb" in added
    assert "ffr" in added


def test_hostile_names_are_text(make_report):
    attack = "<script>alert('1')</script>\" onload=\"x"
    report = make_report(
        classes=(attack, "square", "pentagon"),
        groups=("</td><img src=x>", "{{ 7 * 7 }}"),
        title=attack,
        command=f"counterpoise run {attack}",
        config_yaml=f"name: {attack}",
        plans=[PlanTable(attack, ["ffr"], [[1, 1]] * 3, [[1, 0]] * 3)],
        filtered=[FilterExamples(attack, 1, [(None, attack)])],
        samples=[CellSamples(attack, "{{ 7 * 7 }}", attack, [b"no image"], [], [(None, attack)])],
    )
    page = Page(render(report))
    assert "script" not in page.tags
    assert page.references == []
    assert "{{ 7 * 7 }}" in page.text
    assert attack in page.text


def test_small_images_keep_their_bytes_and_large_ones_shrink(make_report):
    def encoded(size: int, kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.effect_noise((size, size), 60).convert("RGB").save(buffer, kind)
        return buffer.getvalue()

    small, large = encoded(32, "PNG"), encoded(1024, "PNG")
    sample = CellSamples("square", "red", None, [small], [large, encoded(40, "BMP")], [(b"broken", "unreadable")])
    html = render(make_report(samples=[sample], filtered=[]))
    uris = [reference for reference in Page(html).references if reference.startswith("data:")]
    images = [base64.b64decode(uri.partition(",")[2]) for uri in uris]
    assert images[0] == small
    sizes = [Image.open(io.BytesIO(data)).size for data in images]
    assert sizes == [(32, 32), (144, 144), (40, 40)]
    assert len(images[1]) < 40_000
    assert html.count('class="small"') == 2
    assert "unreadable" in html


def test_of_many_cells_the_rarest_are_shown(make_report):
    classes = [f"class {number}" for number in range(100)]
    report = make_report(classes=classes, groups=(), methods=("erm", "ffr"), shown=100)
    shown = report.shown_samples()
    counts = [row[0] for row in report.audit["counts"]]
    assert len(shown) == 64
    assert [report.real_images(cell) for cell in shown] == sorted(counts)[:64]
    html = render(report)
    assert "the 64 rarest of 100 cells" in html
    assert html.count('<article class="cell">') == 64


def test_depth():
    assert depth(0, 0) == "0"
    assert float(depth(0, 100)) == 0 < float(depth(1, 100)) < float(depth(100, 100)) == 1


def test_the_axis_holds_every_dot(make_report):
    report = make_report()
    scale = dot_scale(report, "worst_group_accuracy")
    bounds = [v for method in report.methods for v in report.estimate(method, "worst_group_accuracy").bounds]
    assert scale.low <= min(bounds)
    assert max(bounds) <= scale.high
    assert scale.ticks[0] == pytest.approx(scale.low)
    assert scale.ticks[-1] == pytest.approx(scale.high)
    assert scale.at(scale.low) == "0.00%"
    assert scale.at(2.0) == "100.00%"  # a t-interval may leave [0, 1]; the line ends at the frame
    assert dot_scale(report, "no such metric") is None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look with")
def test_a_browser_shows_it_without_sideways_scrolling_on_a_phone(make_report, tmp_path):
    """A browser lays the page out in a frame 400 px wide and reports how wide it became."""
    (tmp_path / "report.html").write_text(render(make_report(classes=LONG, shown=4)), encoding="utf-8")
    (tmp_path / "probe.html").write_text(
        '<iframe id="f" src="report.html" style="width:400px;height:800px;border:0"></iframe><p id="out"></p><script>'
        "onload = () => { const d = f.contentDocument; out.textContent = "
        "`width ${d.documentElement.scrollWidth} figures ${d.querySelectorAll('td').length}` }</script>",
        encoding="utf-8",
    )
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        "chromium", *quiet.split(), "--disable-component-update", "--disable-sync", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"width (\d+) figures (\d+)", done.stdout)
    assert found, done.stderr[-500:]
    assert int(found[1]) <= 400
    assert int(found[2]) > 100


def test_the_prompts_are_there(make_report):
    text = Page(render(make_report())).text
    assert "Prompts 50 prompts for each cell from a grammar, for usb, asb, ffr; prompt set 5d41402abc4b2a76" in text
    assert "a photo of a red triangle, at dawn · a photo of a red triangle, at noon and 48 more" in text
    assert "1 answer was refused" in text
    assert "it does not say 'triangle'" in text
    assert "Prompts" not in Page(render(make_report(methods=("erm",), samples=[]))).text


@pytest.mark.parametrize(
    ("counts", "words"), [((1, 1), "one prompt"), ((3, 3), "3 prompts"), ((2, 4), "2 to 4 prompts")]
)
def test_how_many_prompts_a_cell_has(counts, words):
    cells = [CellPrompts(str(count), count, []) for count in counts]
    assert PromptTable(["usb"], "d", "a grammar", cells).per_cell == words


BOARDS = {
    "demo": {},
    "one seed": {"seeds": 1},
    "no groups, by a gap": {"by": "group_std", "report": {"groups": ()}},
    "no reference": {"methods": ("usb", "ffr"), "control_of": None},
    "a listed control": {"control_of": None},
    "a hundred classes": {"report": {"classes": [f"class {n}" for n in range(100)], "groups": ()}},
}


@pytest.mark.parametrize("shape", BOARDS.values(), ids=BOARDS.keys())
def test_every_shape_of_leaderboard_is_a_valid_page_that_fetches_nothing(make_board, shape):
    board = make_board(**shape)
    html = render_leaderboard(board)
    page = Page(html)
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)
    for name in (*board.methods, *board.classes, *board.groups):
        assert name in page.text
    assert not re.search(r"\b(None|nan|Undefined)\b", page.text)
    assert len(html) < 1_000_000


def test_the_leaderboard_has_ranks_intervals_costs_and_differences(make_board):
    board = make_board()
    text = Page(render_leaderboard(board)).text
    for method in board.methods:
        for metric in ("worst_group_accuracy", "accuracy", "group_std", "few"):
            mean, low, high = board.estimate(method, metric).to_json()
            assert f"{percent(mean)} {percent(low)} – {percent(high)}" in text
    assert " 1,440 2 min" in text  # the same with every seed
    assert "2 min 06 s 2 min 04 s – 2 min 08 s" in text  # 125, 126, 127: 126 ± 2.5
    assert "control of ffr: erm for 34 epochs, as many steps" in text
    assert "the reference: real images only" in text
    assert "stages trained now 4 of 16" in text
    assert "groups , epochs selected by the groups" in text
    assert board.command in text
    said = board.to_json()
    for found in said["differences"]:
        assert f"{found['method']} {found['other']} {found['seeds']} {points(found['mean'])}" in text
        assert f"{p_value(found['p'])} {p_value(found['corrected'])} {found['outcome']}" in text
    assert all(line in text for line in said["verdict"][1:])


def test_the_heat_map_has_the_gains_over_the_reference(make_board):
    board = make_board()
    page = Page(render_leaderboard(board))
    change = gains(board.cell_accuracies("ffr"), board.cell_accuracies("erm"))
    assert change[1][1] is None
    for value in (change[0][3], change[3][0]):
        assert points(value) in page.text
    classes = [" ".join(name.split()) for name in page.cells]
    flat = [value for method in ("group_dro", "usb", "ffr", "control")
            for row in gains(board.cell_accuracies(method), board.cell_accuracies("erm")) for value in row]  # fmt: skip
    shown = [name.split()[0] for name in classes if name.split()[:1] in (["gain"], ["loss"])]
    assert shown.count("gain") == sum(value is not None and value > 0 for value in flat)
    assert shown.count("loss") == sum(value is not None and value < 0 for value in flat)


def test_one_seed_shows_the_intervals_of_the_test_images(make_board):
    board = make_board(seeds=1)
    mean, low, high = board.estimate("ffr", "accuracy").to_json()
    assert (low, high) == pytest.approx(board.rows[0].intervals["accuracy"]) or low < mean < high
    text = Page(render_leaderboard(board)).text
    assert "resampled test images" in text
    assert "One seed cannot show" in text
    assert {found["p"] for found in board.to_json()["differences"]} == {None}
