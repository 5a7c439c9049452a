"""Matplotlib figures as inline SVG that follows the page: its font, and its colours in light and dark.

Colours that matplotlib draws with are marks; in the SVG each becomes a CSS variable of the page.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape, unescape
from typing import Any

INK, MUTED, GRID, SURFACE = "#010203", "#020304", "#030405", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
"""Series 1 is the judged model; the others follow in the order of the headline table."""
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
    **{mark: f"var(--series-{number})" for number, mark in enumerate(SERIES, 1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "adrec",
    "text.parse_math": False,  # a name out of the data may hold dollar signs
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
WIDTH, HEIGHT = 4.5, 3.0
"""Inches of one plot: 324 points wide, so that text stays legible at the width of a phone."""


@dataclass
class Plot:
    """One drawn plot."""

    title: str
    caption: str
    svg: str = ""
    axes: Any = field(default=None, repr=False)

    def in_words(self, say: Callable[[str], str]) -> str:
        """The SVG, its labels and what it is called in the words of a language."""
        named = self.svg.replace(' aria-label=""', f' aria-label="{escape(say(self.title), quote=True)}"', 1)
        return _WORDS.sub(lambda match: f">{escape(say(unescape(match[1])), quote=False)}</text>", named)


@contextmanager
def drawing(title: str, caption: str = "", *, height: float = HEIGHT, rows: int = 1) -> Iterator[Plot]:
    """Yield a Plot whose `axes` are drawn on inside the block (a list of them where rows > 1); its `svg` is there after it."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False)[:, 0]
        plot = Plot(title, caption, axes=list(axes) if rows > 1 else axes[0])
        yield plot
        stream = io.StringIO()
        with warnings.catch_warnings():
            # Text is drawn by the browser, so glyphs that matplotlib's own font lacks do no harm.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    plot.axes = None
    plot.svg = _for_page(stream.getvalue(), re.sub(r"\W+", "-", title.lower()))


_WORDS = re.compile(r">([^<>]+)</text>")


def _for_page(svg: str, name: str) -> str:
    """Only the <svg> element: scalable, its identifiers its own, its colours and font those of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    body = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub(r"(font: [^;\"]*?\d+(?:\.\d+)?px) [^;\"]+", r"\1 var(--font)", body)
    for mark, variable in _VARIABLES.items():
        body = body.replace(mark, variable)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {view.group()} role="img" aria-label="">{body}'
