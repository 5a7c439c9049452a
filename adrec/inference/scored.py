"""Scores as the columns of a SCORED table."""

from typing import Any

import numpy as np
import pyarrow as pa

from adrec.data.examples import Examples
from adrec.inference.catalogs import Catalogs
from adrec.inference.click_model import Scores
from adrec.schema import ANY_SLOT, BASELINE_PREFIX, LABEL_OF_SCORE, NOBODY, SCORE_PREFIX


def with_scores(impressions: pa.Table, examples: Examples, catalogs: Catalogs, scores: Scores) -> pa.Table:
    """The impressions with the SCORED columns beside their own; columns of those names are replaced."""
    added: dict[str, Any] = {"logit": scores.logit, "score": scores.score}
    if scores.any_slot is not None:
        added[ANY_SLOT] = scores.any_slot
    added |= {f"{SCORE_PREFIX}{name}": values for name, values in scores.tasks.items()}
    nobody, nothing = ((catalog.ids.to_numpy(zero_copy_only=False) == NOBODY) for catalog in (catalogs.users, catalogs.ads))
    for name, cold, unnamed, index in (
        ("cold_ad", catalogs.cold_ad, nothing, examples.ad_index),
        ("cold_user", catalogs.cold_user, nobody, examples.user_index),
    ):
        if not len(unnamed) or not unnamed.all():
            added[name] = pa.array(cold[index], mask=unnamed[index])
    added["history_length"] = examples.history_length
    added |= {f"{BASELINE_PREFIX}{name}": values.astype(np.float32) for name, values in scores.baselines.items()}
    rows = impressions.select([name for name in impressions.column_names if name not in added])
    for name, values in added.items():
        rows = rows.append_column(name, pa.array(values))
    if scores.label != "click":  # whoever judges the scores must know what they are of
        rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), LABEL_OF_SCORE: scores.label.encode()})
    return rows
