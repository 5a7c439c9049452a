"""Commands that apply a bundle."""

from adrec.commands.table import Command, Option

PANEL = "Apply"
COMMANDS = (
    Command(
        "score",
        PANEL,
        "inference.score",
        "inference.score:ScoreConfig",
        writes=("output", "SCORES"),
        or_writes=("parts", "SCORE_PARTS"),
        text="""
        Give click probabilities for any number of rows; labels are not needed, ads and users may be new.

        Reads a bundle, and a split of a prepared folder or your own files (CSV, TSV, lines of JSON, Parquet, `-` for
        standard input) in the columns of the log. Writes one file: the rows' own columns, logit, score, cold flags and
        baselines. Killed, the same command goes on with the parts that are missing; `workers` in the config shares the
        parts among processes and GPUs.

        Example: adrec score --config configs/sample/score.yaml
        """,
    ),
    Command(
        "encode",
        PANEL,
        "inference.encode",
        "inference.encode:EncodeConfig",
        writes=("output", "VECTORS"),
        text="""
        Write ad and user vectors for other systems: their dot product orders ads for a user.

        Reads a bundle, and ads and users of a prepared folder or of your own files. Writes a folder with ads.parquet,
        ads.npy and ads.ids.txt, and the same for users.

        Example: adrec encode --bundle runs/sample/bundle --set prepared=runs/sample/prepared --output runs/sample/vectors
        """,
    ),
    Command(
        "rank",
        PANEL,
        "inference.rank",
        "inference.rank:RankConfig",
        writes=("output", "LISTS"),
        options=("top_n", "policy", Option("why", metavar="USER AD", keys=("why.user", "why.ad"))),
        text="""
        Choose ads from the whole catalogue for every request: retrieve, score, auction, rules, variety, exploration.

        Reads a bundle, and a prepared folder or tables of ads, users and requests. Writes one Parquet file: the ads of each
        request in order, with score, value, price, propensity and a sentence why. Killed, the same command goes on.

        Example: adrec rank --config configs/sample/rank.yaml --top-n 10
        """,
    ),
)
