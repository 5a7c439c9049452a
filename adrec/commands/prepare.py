"""Commands that make data ready."""

from adrec.commands.table import Command, Option

PANEL = "Prepare"
COMMANDS = (
    Command(
        "sample",
        PANEL,
        "data.sample",
        "data.sample:SampleConfig",
        writes=("output", "SAMPLE"),
        options=("impressions", "pictures", "graph", Option("output", "--out", is_hidden=True)),
        text="""
        Write the built-in sample: a seeded world of Chinese and English ads whose click probabilities are known.

        Reads nothing. Writes the folder `--output`: ads.parquet, users.parquet and impressions/part-*.parquet in the
        canonical layout, with the true click probability kept in a column that no model may read (docs/data/sample.md has
        the click model).

        Example: adrec sample --output data/sample --impressions 30000 --seed 42
        """,
    ),
    Command(
        "init",
        PANEL,
        "data.init",
        "data.init:InitConfig",
        writes=("output", "CONFIGS"),
        argument="data",
        text="""
        Look at your own files, guess which column is what, and write a commented set of configs for them.

        Reads the first rows of the CSV, TSV, JSONL or Parquet files DATA (ads, users, impressions, or one wide table;
        folders of MIND, RecBole and Open Bandit are recognised). Writes the folder `--output`: a config for each command.

        Example: adrec init logs.csv ads.csv --output configs/mine
        """,
    ),
    Command(
        "preprocess",
        PANEL,
        "data.preprocess",
        "data.preprocess:PreprocessConfig",
        writes=("output", "PREPARED"),
        text="""
        Turn raw logs and ad copy into a prepared folder.

        Reads the CSV, TSV, JSONL or Parquet files named in the config. Writes the folder `output`: ads, users, impressions
        by split with point-in-time history and counters, fitted features, a tokenizer, manifest.json.

        Example: adrec preprocess --config configs/sample/preprocess.yaml
        """,
    ),
    Command(
        "inspect",
        PANEL,
        "data.inspect",
        "data.inspect:InspectConfig",
        writes=("html", "PAGE"),
        argument="path",
        options=("html", "against", "rows"),
        text="""
        Show what is in a prepared folder, a bundle or any table: rows, types, missing values, days, texts, languages.

        Reads PATH: a folder that preprocess or finetune wrote, or CSV, TSV, JSONL or Parquet files. Writes nothing, but a
        page with plots where `--html` names one. With `--against` it says whether the two are identical, which columns
        differ, and what has drifted beyond chance: columns, labels, scores.

        Example: adrec inspect runs/sample/prepared --html page.html
        """,
    ),
    Command(
        "forget",
        PANEL,
        "data.forget",
        "data.forget:ForgetConfig",
        argument="users",
        options=("preprocess",),
        text="""
        Take people out of everything that adrec keeps of them, and say what cannot be taken out.

        Reads the preprocess config, whose `privacy.forgotten` names the file that remembers whom to leave out. Builds the
        prepared folder anew without them, empties the event store and the tables named in the config of them and the caches
        of what they wrote, then looks through it all for their ids. Bundles that know them are named: train them again.

        Example: adrec forget u17 u42 --preprocess configs/mine/preprocess.yaml
        """,
    ),
)
