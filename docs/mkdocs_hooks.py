"""What the site adds to the pages as files: contents that miss no page, and the notebooks, which lie beside docs/."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Put all other pages of the folder in the place of `folder/*`, README.md first."""
    for entry in config.nav:
        for title, pages in entry.items() if isinstance(entry, dict) else ():
            if isinstance(pages, list) and pages[-1].endswith("/*"):
                folder = pages.pop().removesuffix("/*")
                names = sorted(page.name for page in Path(config.docs_dir, folder).glob("*.md"))
                names.sort(key=lambda name: name != "README.md")
                entry[title] = pages + [name for name in (f"{folder}/{name}" for name in names) if name not in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Take the notebooks along."""
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{notebook.name}", abs_src_path=str(notebook)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """On the site they lie one folder nearer."""
    return markdown.replace("](../../examples/", "](../examples/")
