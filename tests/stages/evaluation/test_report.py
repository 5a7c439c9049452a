"""The report in a real browser: nothing fetched, nothing logged, every plot drawn, desktop and phone, light and dark."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored_world import scored_columns, write_ads, write_scored

from adrec.config.evaluation.evaluate import DriftSettings, EvaluateConfig
from adrec.errors import DataError
from adrec.stages.evaluation.evaluate import run
from adrec.terminal import Terminal

SIZES = {"desktop": (1280, 900), "phone": (360, 740)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every section: other runs, slices with an alarm, lists, off-policy, learning curves, examples."""
    folder = tmp_path_factory.mktemp("report")
    columns = scored_columns(requests=1500)
    broken = columns["scenario"] == "search"
    score = np.where(broken, np.random.default_rng(0).permutation(columns["score"]), columns["score"])
    scored = write_scored(folder / "scored.parquet", requests=1500, score=score, new_policy=np.full(len(score), 1 / 40))
    training = folder / "bundle"
    training.mkdir()
    steps = '{"step": 10, "valid_auc": 0.6, "valid_log_loss": 0.5}, {"step": 20, "valid_auc": 0.65, "valid_log_loss": 0.48}'
    (training / "metrics.json").write_text(f'{{"training": {{"evaluations": [{steps}]}}}}')
    config = EvaluateConfig(
        scored=scored, output=folder / "out", ads=write_ads(folder / "ads.parquet"), training=training,
        against=[write_scored(folder / "other.parquet", requests=1500, noise=2.0)], off_policy={"policy_column": "new_policy"},
        bootstrap={"replicates": 50}, drift={"before": scored, "after": _moved(folder, columns)},
    )  # fmt: skip
    run(config, Terminal(quiet=True))
    return folder / "out" / "report.html"


def _moved(folder, columns):
    pq.write_table(pa.table(columns | {"position": columns["position"] + 3}), folder / "moved.parquet")
    return folder / "moved.parquet"


def test_the_page_stands_alone(report):
    page = report.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert "<script" not in page
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert "nan" not in re.sub(r"<svg.*?</svg>|<style.*?</style>|<pre>.*?</pre>", "", page, flags=re.DOTALL).lower().split()


def test_what_has_changed_in_the_data_is_a_section_and_a_figure(report, tmp_path):
    page = report.read_text(encoding="utf-8")
    assert '<a href="#drift">' in page and page.index('<h2 id="drift">') > page.index('<h2 id="task-1">')
    told = json.loads((report.parent / "metrics.json").read_text())["drift"]
    assert told["drifted"] == ["table.position"] and "Drifted: table.position." in page.split("</header>")[0]
    scored = report.parent.parent / "scored.parquet"
    config = EvaluateConfig(
        scored=scored, output=tmp_path / "quiet", drift={"before": scored, "after": scored}, bootstrap={"replicates": 20}
    )
    result = run(config, Terminal(quiet=True))
    assert result.drift.identical and "Identical: the same rows" in (tmp_path / "quiet" / "report.html").read_text()
    assert any("Identical" in str(line) for line in result.render())
    with pytest.raises(DataError, match="compare two of one kind"):
        both = {"before": scored, "after": report.parent.parent / "nothing"}
        (report.parent.parent / "nothing").mkdir(exist_ok=True)
        (report.parent.parent / "nothing" / "manifest.json").write_text("{}")
        run(config.model_copy(update={"drift": DriftSettings(**both)}), Terminal(quiet=True))


def test_words_from_the_data_are_escaped(report):
    page = report.read_text(encoding="utf-8")
    assert "Great offer &lt;b&gt;" in page
    assert "<b>1</b>" not in page
    assert "春季特惠" in page


def test_identifiers_are_unique(report):
    found = re.findall(r'\bid="([^"]+)"', report.read_text(encoding="utf-8"))
    assert len(found) == len(set(found))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_in_a_browser(report, browser, size, scheme):
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if size == "desktop":  # the table that is read first is read whole, up to its edge
        assert (
            page.evaluate("(() => { const at = document.querySelector('.scroll'); return at.scrollWidth - at.clientWidth })()")
            <= 0
        )
    plots = page.evaluate(
        """() => [...document.querySelectorAll('figure')].map(figure => {
            const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect()
            const drawn = [...svg.querySelectorAll('path')].filter(path => {
                const style = getComputedStyle(path)
                return path.getBBox().width > 0 && (style.stroke !== 'none' || style.fill !== 'none')
            })
            const texts = [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect())
            return {
                title: figure.querySelector('b').textContent, width: box.width, height: box.height, paths: drawn.length,
                smallest: Math.min(...texts.map(text => text.height)),
                outside: texts.filter(text => text.left < box.left - 2 || text.right > box.right + 2).length,
            }
        })"""
    )
    titles = {plot["title"] for plot in plots}
    assert {
        "Lead in AUC per request", "Beyond chance", "Precision and recall", "Lift", "Reliability",
        "Score distributions", "By day", "category",
        "history length", "Exposure of the catalogue", "Learning: AUC", "Learning: log loss",
        "Overlap of the policies", "Estimated click rate", "How far each column has moved",
    } <= titles  # fmt: skip
    for plot in plots:
        assert plot["width"] > 250, plot
        assert plot["height"] > 50, plot
        assert plot["paths"] > 2, plot  # a part of few users has no interval
        assert plot["smallest"] >= 8, plot
        assert plot["outside"] == 0, plot
    context.close()


def test_a_report_on_ranked_lists(tmp_path, browser):
    rows = np.arange(60)
    table = {
        "user_id": [f"u{r // 6}" for r in rows], "request_id": [f"q{r // 6}" for r in rows],
        "ad_id": [f"a{r % 17}" for r in rows],
        "rank": (rows % 6 + 1).astype(np.int32), "score": np.full(60, 0.1, np.float32), "value": 0.2 - rows / 1000,
        "reason": ["Similar to <i>what</i> you clicked."] * 60, "click": (rows % 5 == 0).astype(np.int8),
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "ranked.parquet")
    config = EvaluateConfig(
        scored=tmp_path / "ranked.parquet", output=tmp_path / "out", ads=write_ads(tmp_path / "ads.parquet"),
        bootstrap={"replicates": 20},
    )  # fmt: skip
    run(config, Terminal(quiet=True))
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto((tmp_path / "out" / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("figure svg").count() == 2
    assert page.locator(".example").count() == 4
    assert "Similar to <i>what</i> you clicked." in page.locator(".example").first.inner_text()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(report, browser, scheme):
    """WCAG 2.1 contrast of text against what it stands on: at least 4.5."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(report.as_uri())
    ratios = page.evaluate(
        """() => {
            const level = colour => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
                    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                return 0.2126 * r + 0.7152 * g + 0.0722 * b
            }
            const ground = node => {
                for (; node; node = node.parentElement) {
                    const colour = getComputedStyle(node).backgroundColor
                    if (!/, 0\\)$/.test(colour) && colour !== 'transparent') return colour
                }
            }
            const wheres = ['h1', 'p.muted', 'figcaption', 'td', 'td small', 'th', '.alarm', 'summary', 'svg text', 'li']
            return wheres.map(where => {
                const node = document.querySelector(where), style = getComputedStyle(node)
                const ink = level(node.tagName === 'text' ? style.fill : style.color), paper = level(ground(node))
                return [where, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)]
            })
        }"""
    )
    for where, ratio in ratios:
        assert ratio >= 4.5, where
    context.close()
