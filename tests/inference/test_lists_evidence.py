"""Words and reasons: the rarest shared word, the strongest evidence, the user's language."""

import numpy as np
import pyarrow as pa

from adrec.inference.lists.reasons import Evidence, sentences
from adrec.inference.lists.words import Words

ADS = pa.array(["red running shoes", "跑鞋 户外 露营", "red tent", "", None])


def test_matches_count_shared_words():
    words = Words(ADS)
    matched = words.matched(words.bag(pa.array(["red shoes", "露营 帐篷", "nothing here", ""]))).toarray()
    assert matched.tolist() == [[2, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0] * 5, [0] * 5]


def test_the_rarest_shared_word_is_named():
    words = Words(ADS)
    bag = words.bag(pa.array(["red shoes red", "露营", "露营", "red"]))
    assert words.shared_word(bag, np.array([0, 1, 2, 2])).to_pylist() == ["shoes", "露营", None, "red"]


def test_the_strongest_evidence_speaks_in_the_users_language():
    rows = 6
    said = sentences(
        Evidence(
            chinese=np.array([False, True, False, True, False, False]),
            query_word=pa.array(["shoes", None, None, None, None, None], pa.string()),
            interest_word=pa.array(["red", "露营", None, None, None, None], pa.string()),
            similarity=np.array([0.9, 0.9, 0.9, 0.2, np.nan, np.nan]),
            similar_title=pa.array(["A", "B", "x" * 100, "D", None, None], pa.string()),
            category=pa.array(["sports", "sports", "sports", "户外", None, "sports"]),
            category_share=np.array([0.5, 0.5, 0.5, 0.34, 0.0, 1.0]),
            score=np.full(rows, 0.0312),
            explored=np.array([False] * 5 + [True]),
            linked=tuple(pa.array([None, None, None, None, word, None], pa.string()) for word in ("X", "made by", "Acme")),
        )
    ).to_pylist()
    assert said[0] == "Matches your search: “shoes”."
    assert said[1] == "与您关注的“露营”相符。"
    assert said[2] == f"Similar to “{'x' * 58}…”, which you clicked."
    assert said[3] == "您近期的点击有34%属于“户外”。"
    assert said[4] == "You clicked “X”, with the same made by: Acme."
    assert said[5] == "Shown to learn whether it interests you."
