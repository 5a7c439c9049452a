"""What a config becomes for a log of clicks alone is a config that a bundle can be opened with."""

import pytest

from adrec.config.training.finetune import FinetuneConfig, for_clicks_alone


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("names", [None, [], ["popularity"], ["lightgbm"], ["ease"]])
def test_the_changed_config_is_valid(names, uniform):
    baselines = {} if names is None else {"baselines": {"names": names}}
    config = for_clicks_alone(FinetuneConfig(prepared="/a", output="/b", **baselines), uniform=uniform)
    assert FinetuneConfig.model_validate(config.model_dump()) == config
    assert (config.hybrid.kind == "weighted") == (uniform and names not in ([], ["popularity"]))
