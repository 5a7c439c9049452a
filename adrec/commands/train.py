"""Commands that train."""

from adrec.commands.table import Command

PANEL = "Train"
COMMANDS = (
    Command(
        "pretrain-mlm",
        PANEL,
        "training.pretrain",
        "training.pretrain:PretrainConfig",
        writes=("output", "ENCODER"),
        alias="pretrain",
        text="""
        Teach a text encoder the language of your own ads, interests and queries.

        Reads the corpus and the tokenizer of a prepared folder. Writes an encoder folder in Hugging Face's format, with
        held-out quality before and after in metrics.json and report.html. Interrupted, the same command goes on where it
        was.

        Example: adrec pretrain-mlm --config configs/sample/pretrain.yaml
        """,
    ),
    Command(
        "pretrain-graph",
        PANEL,
        "training.pretrain_graph",
        "training.pretrain_graph:PretrainGraphConfig",
        writes=("output", "ENTITY_VECTORS"),
        text="""
        Learn vectors of the entities that ads are linked to: makers, places, genres.

        Reads the links of a prepared folder. Writes a folder of vectors for `features.ads.vectors` of preprocess, with how
        well links held out are foretold (filtered MRR and Hits@k).

        Example: adrec pretrain-graph --set prepared=runs/graph/prepared --set output=runs/graph/entities
        """,
    ),
    Command(
        "train-reranker",
        PANEL,
        "training.train_reranker",
        "training.train_reranker:TrainRerankerConfig",
        writes=("output", "ENCODER"),
        text="""
        Teach a language model to re-rank the first of a bundle's lists, reading history and ad together.

        Reads a prepared folder, its bundle and an encoder or a decoder (`reference`). Writes a folder for `rerank.reference`
        of rank and serve, and says what it gains on validation requests and what it costs. It costs much.

        Example: adrec train-reranker --config configs/sample/train-reranker.yaml
        """,
    ),
    Command(
        "distill",
        PANEL,
        "training.distill",
        "training.distill:DistillConfig",
        writes=("output", "ENCODER"),
        or_writes=("bundle", "BUNDLE"),
        text="""
        Train a text encoder of fewer layers that gives nearly the vectors of a larger one.

        Reads the corpus of a prepared folder, and an encoder (`teacher`) or a bundle (`bundle`). Writes a smaller encoder,
        or the bundle with the smaller encoder in it, and how close and how much faster it is. With `lists`, a re-ranker
        (`adrec train-reranker`) as `teacher` and a `bundle`, the bundle's network learns the re-ranker's order of lists.

        Example: adrec distill --set prepared=runs/mind/prepared --set bundle=runs/mind/bundle --set output=runs/mind/small
        """,
    ),
    Command(
        "finetune",
        PANEL,
        "training.finetune",
        "training.finetune:FinetuneConfig",
        writes=("output", "BUNDLE"),
        options=("seeds",),
        text="""
        Train a click model, calibrate it, and compare it with every baseline.

        Reads a prepared folder and a text encoder. Writes a bundle: one folder with all that score, rank and serve need.
        Interrupted, the same command goes on where it was.

        Example: adrec finetune --config configs/sample/finetune.yaml
        """,
    ),
    Command(
        "federate",
        PANEL,
        "training.federate",
        "training.federate:FederateConfig",
        writes=("output", "BUNDLE"),
        options=("finetune", "clients", "rounds"),
        text="""
        Train a click model on logs that stay with their owners, over a network or simulated in one process.

        Reads a finetune config and its prepared folder. Clients train in rounds on their own rows; the server sees sums under
        masks. Writes a bundle. In a simulation the folder's rows are dealt out to clients.

        Example: adrec federate --finetune configs/sample/finetune.yaml --clients scenario --rounds 3
        --output runs/sample/federated
        """,
    ),
    Command(
        "tune",
        PANEL,
        "training.tune",
        "training.tune:TuneConfig",
        writes=("output", "SEARCH"),
        options=("trials",),
        text="""
        Search the settings of a finetune config for the best validation metric.

        Reads the finetune config named in `base`, and its prepared folder; test rows are never read. Writes a folder with
        best.yaml (a finetune config), trials.csv and report.html. Interrupted, the same command goes on where it was.

        Example: adrec tune --config configs/sample/tune.yaml --trials 20
        """,
    ),
)
