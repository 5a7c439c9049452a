"""Commands that judge results."""

from adrec.commands.table import Command, Option

PANEL = "Judge"
COMMANDS = (
    Command(
        "evaluate",
        PANEL,
        "evaluation.evaluate",
        "evaluation.evaluate:EvaluateConfig",
        writes=("output", "EVALUATION"),
        argument="scored",
        options=("against", "labels"),
        text="""
        Judge scored or ranked rows by what happened: metrics with intervals, slices, alarms, a report.

        Reads the table that `adrec score` or `adrec rank` wrote; loads no model. Writes the folder `output`: metrics.json,
        report.html (opens without a network), config.yaml.

        Example: adrec evaluate runs/sample/scored.parquet --against runs/other/scored.parquet
        """,
    ),
    Command(
        "compare",
        PANEL,
        "evaluation.compare",
        "evaluation.compare:CompareConfig",
        writes=("output", "COMPARISON"),
        argument="runs",
        options=(Option("metrics", "--metric"), "sort", "task", "html"),
        text="""
        Put runs side by side, best first, with the settings in which they differ.

        Reads the metrics.json that `adrec evaluate` or `adrec finetune` wrote. Writes nothing unless `--output` or `--html`
        names a file. For a paired test of two runs on the same rows, use `adrec evaluate A --against B`.

        Example: adrec compare runs/
        """,
    ),
    Command(
        "audit",
        PANEL,
        "evaluation.audit",
        "evaluation.audit:AuditConfig",
        writes=("output", "AUDIT"),
        options=("finetune", "models"),
        text="""
        Attack a training: who was in it, and which planted secrets does it know?

        Reads a finetune config (or a pretrain config in `canaries`) and its prepared folder, trains it several times on
        random halves of the users, and asks each model whom it has seen. Writes a JSON file, with the epsilon that the
        attack proves beside the one that is claimed. Interrupted, the same command goes on after the last model.

        Example: adrec audit --finetune configs/sample/finetune-private.yaml --output runs/sample/audit.json
        """,
    ),
)
