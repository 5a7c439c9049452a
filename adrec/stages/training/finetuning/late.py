"""The map to probabilities of a task whose label comes late: what validation rows show by now is too little, and too fast.

The rows before the test are young: half of their conversions are still to come, and those that are there are the fast ones. So
the slope stays the network's, and its level is that of the training rows too, where nearly all has come. Costs the
network's outputs on up to 500,000 training rows.
"""

import numpy as np

from adrec.config.training.finetune import FinetuneConfig
from adrec.models.blend.calibration import Calibration
from adrec.models.blend.late_labels import fit_seen
from adrec.training.click_data import VALID_ROWS, ClickData
from adrec.training.ctr_module import Raw
from adrec.training.ctr_training import Trained, raw_outputs

_LIKELIHOODS = {"bce"}


def calibrate_late(
    config: FinetuneConfig, data: ClickData, trained: Trained, joined: str, valid: Raw, number: int
) -> Calibration:
    """Of task `number`, whose outputs on the validation rows are `valid`. `joined` is the kind of hybrid: what is joined on the
    validation rows is judged by them alone, since trees know training rows by heart.

    A main task that no likelihood taught (`listwise` alone, say) gives no log-odds, so that its slope is fitted too.
    """
    late = data.late[data.tasks[number].name].valid
    assert data.valid.elapsed is not None  # as of a timed cut
    parts = [(valid.logits[:, number], valid.labels[:, number], late.by(data.valid.elapsed))]
    is_likelihood = number > 0 or joined != "none" or any(term.kind in _LIKELIHOODS for term in config.loss.terms)
    if joined == "none" or number > 0:
        rows = data.train if data.train is not None else data.sample(VALID_ROWS, config.seed)
        if len(rows) > VALID_ROWS:
            rows = rows.take(np.linspace(0, len(rows) - 1, VALID_ROWS).astype(np.int64))
        where = next(trained.module.parameters()).device
        assert rows.elapsed is not None
        learned = raw_outputs(trained.module, data.batches(rows), config.device)
        trained.module.to(where)
        parts.append((learned.logits[:, number], learned.labels[:, number], late.by(rows.elapsed)))
    logits, labels, share = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return fit_seen(logits, labels, share, is_level=is_likelihood)
