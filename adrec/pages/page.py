"""A page from a template: the shared base, style and parts, in the language that is asked for. Costs a template's rendering.

Templates are English. `| t` gives a sentence in the page's language (adrec/pages/words.py); what comes out of data stands in an
element marked `translate="no"` and stays as it is.
"""

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from adrec.pages.figures import Plot
from adrec.pages.words import translated

Language = Literal["en", "zh"]


def rendered(template: Path, language: Language, filters: Mapping[str, Any] | None = None, **values: Any) -> str:
    """The HTML of a template file that extends `base.html.j2`."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    room = files("adrec.pages")
    shared = {name: (room / name).read_text(encoding="utf-8") for name in ("base.html.j2", "parts.html.j2")}
    environment = Environment(
        loader=DictLoader(shared), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    say = partial(translated, language=language)

    def drawn(plot: Plot) -> str:
        return Markup(plot.in_words(say))  # drawn here; what came from data is escaped in it

    environment.filters |= {"t": say, "drawn": drawn, "thousands": "{:,}".format, **(filters or {})}
    environment.globals |= {"language": language, "style": Markup((room / "style.css").read_text(encoding="utf-8"))}
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
