"""Values that cannot be meant, and files made to break a reader: each is one plain line, told before any work."""

import pytest
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.config.base import load_config
from adrec.config.commands import config_models
from adrec.config.data.preprocess import PreprocessConfig
from adrec.errors import ConfigError

WHOLE = "output: p\nsource: {format: tables, impressions: {files: log.csv}}\n"
GROWING = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(f'*{old}' for _ in range(9))}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
SOURCE = "output: p\nsource: {{format: tables, impressions: {{files: {files}, delimiter: {delimiter}}}}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 50 levels"),
        (WHOLE + "text: " + "{a: " * 60 + "1" + "}" * 60, "nested deeper than 50 levels"),
        (GROWING, "repeat more than 100,000 values"),
        ("a: &a [*a]", "stands inside what it repeats"),
        (WHOLE + "tokenizer: {vocab_size: 1000000000000}", "tokenizer.vocab_size"),
        (WHOLE + "tokenizer: {vocab_size: 1e12}", "tokenizer.vocab_size"),
        (WHOLE + "memory_limit_gb: 1e308", "memory_limit_gb"),
        (WHOLE + "memory_limit_gb: .nan", "memory_limit_gb: input should be a finite number"),
        (WHOLE + "memory_limit_gb: .inf", "memory_limit_gb: input should be a finite number"),
        (WHOLE + "seed: -1", "seed: input should be greater than or equal to 0"),
        (WHOLE + "seed: " + "9" * 5000, "a value cannot be read"),
        (WHOLE + "seed: 2024-13-45", "a value cannot be read"),
        (SOURCE.format(files="log.csv", delimiter="'|||||'"), "delimiter: is no delimiter: 1 to 4 bytes"),
        (SOURCE.format(files="log.csv", delimiter="\\t"), "in double quotes"),
        (SOURCE.format(files="log.csv", delimiter="''"), "delimiter: is no delimiter"),
        (SOURCE.format(files="[]", delimiter="null"), "at least 1 item"),
        (WHOLE.replace("output: p", 'output: "a\\0b"'), "output: holds the character NUL"),
        (WHOLE + '"odd\\0key": 1', "holds the character NUL"),
        (WHOLE.replace("output: p", "output: " + "x" * 300), "at most 4095 bytes, and each name in it 255"),
        (WHOLE.replace("output: p", "output: " + "/".join(["y" * 200] * 30)), "at most 4095 bytes"),
        (WHOLE.replace("output: p", "output: ~nobody_there/x"), "a user whom this machine does not know"),
    ],
)
def test_one_plain_line(text, said, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    found = CliRunner().invoke(app, ["preprocess", "--config", str(tmp_path / "c.yaml")])
    assert found.exit_code == 1
    assert said in found.stderr
    assert "should not" not in found.stderr
    assert all(len(line) < 600 for line in found.stderr.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_key_of_thousands_of_parts():
    with pytest.raises(ConfigError, match="nested deeper than 50 levels"):
        load_config(None, PreprocessConfig, [".".join(["a"] * 5000) + "=1"])


def test_aliases_that_people_write_are_read(tmp_path):
    text = WHOLE + "keep: &names [a, b, c]\nad_columns: *names\n"
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml", PreprocessConfig).ad_columns == ["a", "b", "c"]


@pytest.mark.parametrize("command", sorted(config_models()))
def test_no_number_of_any_command_is_without_an_end(command, tmp_path):
    """Every number of every config, set to 1e300 or NaN, is refused by name."""
    model = config_models()[command]
    for path in sorted(_numbers(model)):
        for value in ("1e300", ".nan"):
            with pytest.raises(ConfigError) as refused:
                load_config(None, model, [f"{path}={value}"])
            assert any(line.startswith(f"--set: {path}") for line in str(refused.value).splitlines()), (path, value)


def _numbers(model, prefix=""):
    for name, field in model.model_fields.items():
        kind = field.annotation
        if kind in (int, float):
            yield f"{prefix}{name}"
        elif isinstance(kind, type) and hasattr(kind, "model_fields"):
            yield from _numbers(kind, f"{prefix}{name}.")
