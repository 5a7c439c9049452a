"""`tune` on several nodes: trials side by side, one made again whose worker was killed, and a search that goes on."""

import pytest
from cluster_chaos import QUIET, Killer, wait_for, workers
from tune_world import make_tune_world, tune_config

from adrec.stages.training import tune
from adrec.stages.training.tuning.trial import train_trial
from adrec.terminal import Terminal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tune_world(tmp_path_factory.mktemp("tune"))


def config(folder, name, cluster, **settings):
    space = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    return tune_config(folder, name, cluster={"address": cluster.address, "workers": 2}, space=space, **settings)


def test_trials_side_by_side(cluster, folder):
    """What a trial finds for its values is what one process finds; a killed worker's trial is trained again."""
    made = config(folder, "shared", cluster, trials=6)
    with Killer(cluster, 12.0) as killer:
        result = tune.run(made, QUIET)
    assert killer.killed == 1
    assert [row["trial"] for row in result.trials] == list(range(6))
    assert sum(row["state"] == "complete" for row in result.trials) >= 4
    assert result.trials[0]["values"] == {"training.learning_rate": 1e-3}, "the base comes first"
    for row in result.trials[:2]:
        chosen = tune.with_values(made, {"training.monitor": result.metric, **row["values"]})
        again = train_trial(chosen, folder / "work", QUIET, lambda step, value: None)
        assert again == pytest.approx(row["value"], abs=1e-9)


def test_values_that_do_not_go_together_are_their_own_trials_fault(cluster, folder):
    space = {"model.hidden": {"choices": [[8], [-1]]}}
    result = tune.run(config(folder, "faulty", cluster, trials=5, sampler="random", space=space), QUIET)
    states = {(row["state"], tuple(row["values"]["model.hidden"])) for row in result.trials}
    assert states == {("complete", (8,)), ("fail", (-1,))}
    assert all("model.hidden" in row["fault"] for row in result.trials if row["state"] == "fail")


class _Stopping(Terminal):
    """Ctrl-C after the first trial."""

    def progress(self, *args, **kwargs):
        return self

    def __enter__(self):
        return self.stop

    def __exit__(self, *fault):
        return False

    def stop(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_a_search_that_is_stopped_goes_on(cluster, folder):
    made = config(folder, "cut", cluster, trials=4, pruner="none")
    with pytest.raises(KeyboardInterrupt):
        tune.run(made, _Stopping(quiet=True))
    wait_for(lambda: not workers())
    assert not (folder / "cut").exists()
    result = tune.run(made, QUIET)
    assert len(result.trials) == 4 and len({row["values"]["training.learning_rate"] for row in result.trials}) == 4
    assert (folder / "cut" / "best.yaml").exists()
