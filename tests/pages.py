"""The command lines that README and docs print, and the files that they name, made small."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
LESS_WORK = {  # what is printed, with less training
    "pretrain": ["training.max_steps=4"],
    "pretrain-mlm": ["training.max_steps=4"],
    "finetune": ["training.epochs=1", "seeds=1", "ensemble=false"],
    "distill": ["training.max_steps=3"],
    "explain": ["rows=3", "overall_rows=100"],
    "evaluate": ["bootstrap.replicates=50"],
}


def command_lines(page: Path) -> list[str]:
    """Every line of a program in its code blocks, and every command with options in its sentences, as printed: comments off,
    continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    pieces = re.split(r"^```(.*)\n", text, flags=re.MULTILINE)  # prose, language, block, "", prose, ...
    blocks = [
        block for language, block in zip(pieces[1::4], pieces[2::4], strict=True) if language in {"", "bash", "sh", "console"}
    ]
    prose = "".join(pieces[0::4])
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if re.match(r"(adrec|make|python|cat \S+ \| adrec) ", line)]
    prose = "" if text.startswith("<!-- Made by") else prose  # of a page of commands, the meaning of its settings
    spoken = [" ".join(line.split()) for line in re.findall(r"`(adrec [^`]* --[^`]*)`", prose)]
    return [line for line in lines + re.findall(r"^ {4}(adrec .*)$", prose, re.MULTILINE) + spoken if not _is_form(line)]


def python_blocks(page: Path) -> list[str]:
    """The code of its Python blocks."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _is_form(line: str) -> bool:
    """Whether a line shows how to write a command rather than a command: `--out DIR`, `...`."""
    return "..." in line or bool(re.search(r"\s[A-Z]+\b", line.split("#")[0]))


def arguments_of(line: str) -> tuple[list[str], str | None]:
    """What comes behind `adrec` in a line, with less work where it trains; and the file whose text is piped in."""
    piped, _, line = line.rpartition("|")
    words = shlex.split(line, comments=True)
    assert words[0] == "adrec", line
    for option, least in (("--trials", "2"), ("--impressions", "4000")):
        if option in words:
            words[words.index(option) + 1] = least
    less = [word for setting in LESS_WORK.get(words[1], []) for word in ("--set", setting)]
    return [*words[1:], *less], shlex.split(piped)[1] if piped else None


def write_mind(folder: Path) -> None:
    """A log of the form of MIND over the days that configs/mind splits, and Chinese titles of its news."""
    folder.mkdir(parents=True)
    words = ("football final", "city council", "new phone", "rain and wind", "old film")
    news = [f"N{n}\tcat{n % 5}\tsub{n % 7}\t{words[n % 5]} {n}\tmore\thttps://x\t[]\t[]" for n in range(40)]
    (folder / "news.tsv").write_text("\n".join(news) + "\n", encoding="utf-8")
    titles = "".join(f"N{n}\t足球 决赛 {n}\t\n" for n in range(40))
    (folder / "news_zh.tsv").write_text(f"nid\ttitle\tabstract\n{titles}", encoding="utf-8")
    behaviors = []
    for n in range(600):
        day, hour, minute = 9 + n // 100, (n % 100) // 5, n % 60
        shown = [f"N{(n * 7 + k * 3) % 40}-{int((n + k) % 4 == 0)}" for k in range(5)]
        moment = f"11/{day:02d}/2019 {hour % 12 or 12}:{minute:02d}:00 {'AM' if hour < 12 else 'PM'}"
        behaviors.append(f"{n}\tU{n % 23}\t{moment}\tN{n % 40} N{(n + 3) % 40}\t{' '.join(shown)}")
    (folder / "behaviors.tsv").write_text("\n".join(behaviors) + "\n", encoding="utf-8")
