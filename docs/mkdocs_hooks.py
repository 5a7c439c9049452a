"""What the site adds to the pages as files: a page a command in the contents, and the notebooks, which lie beside docs/."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Fill the contents' section of commands with the pages that docs/generate.py has written."""
    pages = sorted(Path(config.docs_dir, "commands").glob("*.md"), key=lambda page: (page.stem != "README", page.stem))
    for entry in config.nav:
        if "Commands" in entry:
            entry["Commands"] = [f"commands/{page.name}" for page in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Take the notebooks along."""
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{notebook.name}", abs_src_path=str(notebook)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """On the site they lie one folder nearer."""
    return markdown.replace("](../../examples/", "](../examples/")
