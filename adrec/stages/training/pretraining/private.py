"""`adrec pretrain-mlm` under `privacy`: what users wrote is learned under noise, and the folder says what it tells of them.

The ads' texts are public and learned as ever. Nothing else of a user's text reaches the folder: figures, curves and
neighbours are those of ads.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adrec.config.base import save_config
from adrec.config.training.pretrain import PretrainConfig, ScratchModel
from adrec.data.disk.engine import open_memory_engine
from adrec.data.disk.outputs import files_of
from adrec.data.prepared import Prepared
from adrec.data.text.corpus import HELD_OUT, Corpus, ordinary_ids, texts_of
from adrec.errors import ConfigError, DataError, ResourceError
from adrec.models.text.language_model import LanguageModel
from adrec.models.text.text_encoder import TextEncoder
from adrec.privacy.accounting import Event, epsilon_of
from adrec.privacy.ledger import Ledger, Line, unaccounted
from adrec.privacy.noise import Noise
from adrec.stages.training.pretraining.objectives import mlm_feed
from adrec.terminal import Terminal
from adrec.training.loop.loader import BatchLoader
from adrec.training.loop.trainer import FitResult, fit
from adrec.training.objectives.mlm import Mlm
from adrec.training.private.mlm import PrivatePretrainModule
from adrec.training.private.schedule import schedule_within
from adrec.training.private.texts import TextPlan, texts_of_users

LEDGER_FILE = "privacy.json"
"""Of an encoder folder: the ledger of what it tells of users."""
_USERS_A_STEP = 256
_CONFIG = ("config.yaml", "config.json", "generation_config.json", "adrec.json")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def public_corpus(config: PretrainConfig, corpus: Corpus, path: Path, prepared: Prepared) -> Corpus:
    """The corpus with texts held out by their hash alone: that an ad came late is told by who was shown it before.

    Raises DataError where the catalogue itself is told by the log.
    """
    assert config.privacy is not None
    if prepared.names_ads_by_rows and "ads" not in config.privacy.public:
        raise DataError(
            f"{prepared.path}: its ads are those that its impressions name, so that their texts tell what was shown, if only to"
            " one user. Give preprocess the catalogue (source.ads); or if anyone may know these ads, say so:"
            " --set 'privacy.public=[ads]'."
        )
    texts = pa.table({"text": texts_of(path, np.arange(len(corpus)))})
    with open_memory_engine() as engine:
        engine.register("texts", texts)
        held_out = engine.sql(f"SELECT {HELD_OUT} AS held_out FROM texts").to_arrow_table()["held_out"].to_numpy()
    return replace(corpus, held_out=held_out)


def train_texts_privately(
    config: PretrainConfig,
    model: LanguageModel,
    encoder: TextEncoder,
    corpus: Corpus,
    prepared: Prepared,
    *,
    device: str,
    work: Path,
    terminal: Terminal,
) -> tuple[FitResult, Ledger]:
    """Train for a number of steps that was fixed before; nothing is chosen by what users wrote."""
    privacy, mlm = config.privacy, config.objectives.mlm
    assert privacy is not None and mlm is not None
    if config.model.kind == "continue" and Path(config.model.reference).exists():
        held = read_ledger(Path(config.model.reference))
        raise ConfigError(
            f"model.reference: {config.model.reference} is a folder of this machine, "
            + ("and its own epsilon would have to be added" if held is not None else "and may have learned what users wrote")
            + ". Take an encoder that was trained elsewhere."
        )
    randomness = Noise(None if privacy.secure else config.seed)
    if not privacy.secure:
        terminal.warn("privacy.secure is false: who knows the seed can take the noise away. The encoder protects nobody.")
    texts, user, text = texts_of_users(prepared)
    users = int(user[-1]) + 1
    a_step = privacy.users_per_step or max(1, min(_USERS_A_STEP, users // 10))
    if a_step > users:
        raise ConfigError(f"privacy.users_per_step is {a_step:,}, and {users:,} users wrote anything. Lower it.")
    schedule = schedule_within(privacy, config.training, rate=a_step / users, delta=privacy.delta)
    tokenizer = encoder.tokenizer
    ads = np.flatnonzero((corpus.kind == "ad") & ~corpus.held_out & (corpus.lengths > 2))
    plan = TextPlan(
        [np.asarray(ids, np.int64) for ids in encoder.token_ids(texts, "query")],
        user,
        text,
        schedule.rate,
        schedule.steps,
        config.batches.max_tokens,
        privacy.users_at_once,
        mlm.rate,
        tokenizer.mask_token_id,
        tokenizer.pad_token_id,
        ordinary_ids(tokenizer),
        randomness,
        mlm_feed(config, corpus, tokenizer, ads, shuffle=True),
    )
    training = config.training
    module = PrivatePretrainModule(
        model,
        [Mlm()],
        [mlm.weight],
        noise=schedule.noise,
        clip=privacy.clip,
        expected=plan.expected,
        randomness=randomness,
        training=training,
        total_steps=schedule.steps,
    )
    loader = BatchLoader(
        plan.plan, plan.collate, total=schedule.steps, seed=config.seed, workers=training.workers, pin_memory=False
    )
    run = fit(
        module,
        loader,
        None,
        config=training.model_copy(update={"precision": "fp32"}),
        seed=config.seed,
        device=device,
        work=work,
        terminal=terminal,
        description="pretraining privately",
        total_units=schedule.steps,
        unit="steps",
    )
    return run, _ledger(config, schedule.event, is_secure=randomness.is_secure)


def write_private_folder(folder: Path, config: PretrainConfig, ledger: Ledger) -> None:
    """The ledger beside the weights. A run's logs stay behind, and its profile, which knows how long the users' texts are.

    Raises ResourceError for a file without a line.
    """
    save_config(config, folder / "config.yaml")
    for name in ("logs", "profile"):
        shutil.rmtree(folder / name, ignore_errors=True)
    stored = ledger.to_json()
    files = _digests(folder)
    if strange := unaccounted(stored, files):
        raise ResourceError(f"{folder}: the ledger of its privacy does not account for {strange[0]!r}. Nothing was written.")
    stored["files"] = files
    (folder / LEDGER_FILE).write_text(json.dumps(stored, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    """File → SHA-256, of all files of an encoder folder but the ledger."""
    files = [file for file in files_of(folder) if file.relative_to(folder) != Path(LEDGER_FILE)]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def read_ledger(folder: Path) -> dict[str, Any] | None:
    """The ledger of an encoder folder, None where it has none. Raises ConfigError where it does not add up, or where the files
    are not those that it was written for."""
    file = folder / LEDGER_FILE
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        whole = [line for line in stored["lines"] if "event" in line]
        spent = epsilon_of([Event(**line["event"]) for line in whole], float(stored["delta"]), stored["accountant"])
        if not whole or spent > float(stored["epsilon"]) * 1.001 + 1e-3:
            raise ValueError(f"its lines cost {spent:.3g}")
        held = _digests(folder)
        other = sorted(name for name in {*held, *stored["files"]} if held.get(name) != stored["files"].get(name))
        if other:
            raise ValueError(f"'{other[0]}' is not the file that it was written for")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: is no ledger that adds up ({error}). Pretrain again.") from None
    return dict(stored)


def _ledger(config: PretrainConfig, event: Event, *, is_secure: bool) -> Ledger:
    privacy = config.privacy
    assert privacy is not None
    how = (
        f"DP-SGD: {event.steps:,} steps, each user takes part with probability {event.rate:.4g} and one row of"
        f" {config.batches.max_tokens} tokens; gradients cut to {privacy.clip:g}"
    )
    word = "declared public" if isinstance(config.model, ScratchModel) else "of the encoder that was continued"
    lines = (
        Line("weights", "noised", how, ("model.safetensors",), "Gaussian", privacy.clip, event),
        Line("tokenizer", "public", word, _TOKENIZER),
        Line("config", "public", "what the owner wrote, and the shape of the network", _CONFIG),
        Line("figures, curves, neighbours", "public", "of ads alone", ("metrics.json", "report.html")),
        Line("number of users", "public", "taken as known, as is usual"),
    )
    return Ledger("user", privacy.epsilon, privacy.delta, privacy.accountant, is_secure, lines)
