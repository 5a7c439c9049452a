"""The one way to Chinese words: jieba, quiet, with its dictionary cached where only this user can write."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from adrec.data.text.vector_cache import default_cache_folder


@lru_cache(maxsize=2)
def chinese_segmenter(user_dictionary: Path | None = None) -> Any:
    """A `jieba.Tokenizer` (`lcut`, `tokenize`), made once. `user_dictionary`: `word frequency tag`, a line each."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    # jieba keeps its dictionary in a file of the shared temporary folder, where others could put one of theirs.
    cache = default_cache_folder() / "jieba"
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer.tmp_dir = str(cache)
    if user_dictionary is not None:
        tokenizer.load_userdict(str(user_dictionary))
    return tokenizer
