"""The networks of finetune: one a seed, and the chosen one (or all, as an ensemble) trained once more on all rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adrec.stages.training.finetuning.material import Material
from adrec.training.click_data import ClickData
from adrec.training.click_encoder import trained_encoder
from adrec.training.ctr_training import Trained, best_run, best_share, ensemble, train_again, train_click_model


@dataclass(frozen=True)
class Refit:
    """The networks trained once more, on training and validation rows."""

    data: ClickData
    share: float
    """of the schedule, at which training was best"""
    trained: Trained

    def as_dict(self, chosen: Trained) -> dict[str, float]:
        """Rows, steps, and how alike the network and the chosen one order the validation rows (Spearman's correlation)."""
        from scipy.stats import spearmanr

        agreement = spearmanr(chosen.valid.logits[:, 0], self.trained.valid.logits[:, 0]).statistic
        return {"rows": self.data.rows, "share": self.share, "steps": self.trained.run.steps, "agreement": float(agreement)}


@dataclass(frozen=True)
class Networks:
    """What was trained."""

    runs: list[Trained]
    """one a seed"""
    chosen: Trained
    """the best of them, or all as one"""
    refit: Refit | None


def train_networks(material: Material, work: Path) -> Networks:
    """Train each seed, choose, and train the choice again on all rows where `refit` asks for it.

    All training comes before anything else: with several devices the helper processes end with the last of it.
    """
    config = material.config
    runs = [
        train_click_model(
            config,
            material.data,
            seed=config.seed + number,
            work=work / f"seed{config.seed + number}",
            terminal=material.terminal,
            text_encoder=trained_encoder(config, material.encoder),
            description="Training" if config.seeds == 1 else f"Training {number + 1}/{config.seeds}",
            is_last=number == config.seeds - 1 and not config.refit,
            start=material.start,
            text_space=material.text_space,
        )
        for number in range(config.seeds)
    ]
    chosen = runs if config.ensemble else [best_run(runs)]
    refit = _train_on_all(material, runs, chosen, work) if config.refit else None
    return Networks(runs, _as_one(chosen), refit)


def _train_on_all(material: Material, runs: Sequence[Trained], chosen: list[Trained], work: Path) -> Refit:
    config, data = material.config, material.all_rows()
    share = best_share(config, runs)
    networks = train_again(
        config,
        data,
        chosen,
        share=share,
        work=work,
        terminal=material.terminal,
        text_encoders=partial(trained_encoder, config, material.encoder),
        start=material.start,
        text_space=material.text_space,
    )
    return Refit(data, share, _as_one(networks))


def _as_one(runs: Sequence[Trained]) -> Trained:
    return runs[0] if len(runs) == 1 else ensemble(runs)
