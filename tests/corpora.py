"""Small bilingual corpora as prepared folders, with a trained tokenizer: what pretraining reads. Import from any test."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.data.prepared import FORMAT
from adrec.prepare.text.tokenizer import train_tokenizer
from adrec.schema import INDICES

ENGLISH = {
    "garden": "roses soil spade lawn seedling tulips compost watering",
    "football": "striker league goalkeeper derby penalty stadium midfielder kickoff",
    "cooking": "pasta saucepan butter recipe oven ingredients roasting simmer",
}
CHINESE = {
    "旅行": "海滩 酒店 护照 机票 旅行社 行李箱 度假村 导游",
    "音乐": "吉他 演唱会 合唱团 旋律 鼓手 钢琴曲 唱片 歌手",
    "理财": "股票 基金 养老金 证券 债券 储蓄 利率 贷款",
}


def texts(count: int, *, seed: int = 0) -> tuple[list[str], list[str], list[int]]:
    """Distinct texts, their languages and topics: five to eight words of one topic each."""
    rng = np.random.default_rng(seed)
    made: dict[str, tuple[str, int]] = {}
    while len(made) < count:
        chinese = bool(rng.random() < 0.5)
        topics = CHINESE if chinese else ENGLISH
        number = int(rng.integers(len(topics)))
        words = rng.choice(list(topics.values())[number].split(), size=int(rng.integers(5, 9)))
        made.setdefault(("" if chinese else " ").join(words), ("zh" if chinese else "en", number + 3 * chinese))
    return list(made), [language for language, _ in made.values()], [topic for _, topic in made.values()]


def make_corpus(folder: Path, *, count: int = 300, seed: int = 0, kind: str = "wordpiece", held_out: float = 0.2) -> Path:
    """A prepared folder with corpus, tokenizer, ads, users, and training clicks that stay within a topic."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, languages, topics = texts(count, seed=seed)
    rng = np.random.default_rng(seed)
    corpus = pa.table(
        {
            "text": lines,
            "segmented": lines,
            "language": languages,
            "kind": ["ad"] * count,
            "held_out": rng.random(count) < held_out,
        }
    )
    pq.write_table(corpus, folder / "corpus.parquet")
    train_tokenizer(folder / "corpus.parquet", folder / "tokenizer", kind=kind, vocab_size=400, min_frequency=1, max_tokens=512)
    halves = [f"{line[: len(line) // 2].strip()} [SEP] {line[len(line) // 2 :].strip()}" for line in lines]
    ads = pa.table(
        {
            "ad_id": [f"a{row}" for row in range(count)],
            "title": lines,
            "text": halves,
            "segmented": lines,
            "language": languages,
        }
    )
    pq.write_table(ads, folder / "ads.parquet")
    users = pa.table({"user_id": ["u0"], "text": ["roses and soil"], "segmented": ["roses soil"]})
    pq.write_table(users, folder / "users.parquet")
    _write_clicks(folder / "impressions" / "train", np.asarray(topics), rng)
    manifest = {"format": FORMAT, "fingerprint": f"corpus-{count}-{seed}-{kind}", "text_template": "{title}", "splits": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _write_clicks(folder: Path, topics: np.ndarray, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ad = rng.integers(0, len(topics), 400)
    history = [[int(rng.choice(np.flatnonzero(topics == topics[row])))] if rng.random() < 0.9 else [] for row in ad]
    count = len(ad)
    table = pa.table(
        {
            "row_id": pa.array(np.arange(count)),
            "user_id": ["u0"] * count,
            "ad_id": [f"a{row}" for row in ad],
            "shown_at": pa.array(np.arange(count) * 1_000_000, pa.timestamp("us", tz="UTC")),
            "click": pa.array((rng.random(count) < 0.7).astype(np.int8)),
            "request_id": [f"r{row}" for row in range(count)],
            "ad_index": pa.array(ad.astype(np.int32)),
            "user_index": pa.array(np.zeros(count, np.int32)),
            "history_index": pa.array(history, INDICES),
            "history_length": pa.array(np.fromiter(map(len, history), np.int32, count)),
            "query": [f"buy {line}" for line in np.where(topics[ad] < 3, "spade", "吉他")],
        }
    )
    pq.write_table(table, folder / "part-00000.parquet")
