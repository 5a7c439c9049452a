"""Commands that put a bundle to work."""

from adrec.commands.table import Command, Option

PANEL = "Ship"
COMMANDS = (
    Command(
        "serve",
        PANEL,
        "inference.serve",
        "inference.serve:ServeConfig",
        writes=("store", "STORE"),
        is_server=True,
        options=("ads", "host", "port"),
        text="""
        Serve scores, lists and reasons over HTTP, and a page to try them.

        Reads a bundle, and a prepared folder or an ads table. Writes the event store: clicks, impressions, changed ads.
        OpenAPI at /docs, metrics at /metrics, the page at /.

        Example: adrec serve --config configs/sample/serve.yaml --port 8080
        """,
    ),
    Command(
        "events",
        PANEL,
        "inference.events",
        "inference.serve:EventsConfig",
        writes=("output", "SCORES"),
        options=("store", "redis", "keep_days", "erase_user", "pseudonymise", "backup", "restore"),
        text="""
        Write the impressions that the server recorded, with their clicks, as a table for evaluate; or look after the store.

        Reads the event store of `adrec serve`. Writes SCORED Parquet: impressions whose events carried the request id,
        score, propensity and arm that the list gave. Arms are compared by `adrec evaluate --set slices.columns=[arm]`.

        The store is looked after with --keep-days, --erase-user, --pseudonymise, --backup and --restore, each with or
        without an output.

        Example: adrec events --store adrec-store.sqlite --output served.parquet
        """,
    ),
    Command(
        "explain",
        PANEL,
        "inference.explain",
        "inference.explain:ExplainConfig",
        writes=("output", "EXPLANATION"),
        options=(Option("user_id", "--user"), Option("ad_id", "--ad"), Option("overall", "--global"), "language"),
        text="""
        Say why rows got their scores: how interests, search and clicks match the ad, its words, features, and what would
        change.

        Reads a bundle, and a split of a prepared folder or Parquet tables of impressions, ads and users. Writes a folder
        with explanations.json and explanations.html. Contributions are log-odds and add up to the logit; beside each stands
        the score without it. With --global it writes importance.json instead: what the model loses without each input,
        which `adrec evaluate` draws in its report.

        Example: adrec explain --bundle runs/sample/bundle --set prepared=runs/sample/prepared --set split=test --output why
        """,
    ),
    Command(
        "export",
        PANEL,
        "training.export",
        "training.export:ExportConfig",
        writes=("output", "EXPORT"),
        options=("int8",),
        text="""
        Write the bundle's encoder and scorer as ONNX files, and print how far they are from torch.

        Reads a bundle, and a split of a prepared folder or Parquet tables to compare on. Writes a folder with encoder.onnx,
        scorer.onnx, onnx.json. `adrec score --set onnx=FOLDER` then scores by onnxruntime.

        Example: adrec export --bundle runs/sample/bundle --set prepared=runs/sample/prepared --set split=test --output onnx
        """,
    ),
    Command(
        "sign",
        PANEL,
        "inference.sign",
        "inference.sign:SignConfig",
        options=("key", "make_key"),
        text="""
        Sign a bundle, so that others can tell whose it is: commands given --trusted-key refuse any other.

        Reads a bundle and a secret key. Writes bundle.json.minisig into the bundle, in minisign's format (Ed25519), and
        with --make-key the key and its public half (.pub). Any change of the bundle ends the signature.

        Example: adrec sign --key release.key --make-key --bundle runs/sample/bundle
        """,
    ),
)
