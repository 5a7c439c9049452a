"""Explanations add up, are confirmed by removal, and read as sentences in the reader's language."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from worlds import TOPICS, WORDS, make_bundle, make_world, word_encoder

from adrec.config.base import load_config
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.inference.explain.explainer import OTHER_ADS, Explainer, Part, titles_of
from adrec.inference.explain.names import feature_name
from adrec.inference.explain.sentence import part_label, sentence
from adrec.inference.explain.shapley import shapley
from adrec.inference.explain.variants import Variants
from adrec.inference.explain.words import MOST_STRETCHES, stretches, without
from adrec.inference.predictor import Predictor
from adrec.stages.evaluation.evaluate import run as evaluate
from adrec.stages.inference.explain import run as explain
from adrec.stages.inference.score import run as score
from adrec.stages.training.finetune import run as finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A hybrid of network and trees over a world where people ask for a topic, too."""
    root = tmp_path_factory.mktemp("explain")
    make_world(root / "prepared", requests=1500, listed_words=True)
    rng = np.random.default_rng(1)
    for file in sorted((root / "prepared" / "impressions").glob("*/*.parquet")):
        table = pq.read_table(file)
        asked = {request: TOPICS[rng.integers(len(TOPICS))] for request in table["request_id"].to_pylist()}
        query = [asked[request] if request.endswith(("1", "2", "3")) else None for request in table["request_id"].to_pylist()]
        pq.write_table(table.append_column("query", pa.array(query, pa.string())), file)
    word_encoder(root / "words")
    settings = [
        f"prepared={root / 'prepared'}", f"output={root / 'bundle'}", f"text.reference={root / 'words'}",
        f"text.cache={root / 'cache'}", "model.width=16", "training.epochs=8", "training.learning_rate=3e-3",
        "baselines.names=[lightgbm]", "hybrid.kind=average",
    ]  # fmt: skip
    finetune(load_config(None, FinetuneConfig, settings), QUIET)
    prepared = open_prepared(root / "prepared")
    predictor = Predictor.load(root / "bundle", device="cpu", cache=root / "cache")
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    examples = load_examples(prepared, "test")
    explainer = Explainer(predictor, catalogs, titles_of(prepared.ads()))
    rows = np.random.default_rng(0).permutation(len(examples))[:30]
    return root, predictor, catalogs, examples, explainer, {int(row): explainer.explain(examples, int(row)) for row in rows}


def test_parts_add_up_to_the_logit_that_score_gives(trained):
    root, predictor, catalogs, examples, _, explained = trained
    assert predictor.packed.hybrid.kind != "none"
    scored = predictor.score_examples(examples, catalogs, baselines=False)
    for row, found in explained.items():
        assert found.logit == pytest.approx(float(scored.logit[row]), abs=1e-6)
        assert found.score == pytest.approx(float(scored.score[row]), abs=1e-6)
        assert found.baseline + sum(part.contribution for part in found.parts) == pytest.approx(found.logit, abs=1e-9)
        sizes = [abs(part.contribution) for part in found.parts]
        assert sizes == sorted(sizes, reverse=True)  # words, matches and features in one order


def test_taking_away_what_speaks_for_an_ad_lowers_its_score(trained):
    """The removal is done on the tables, as who has the data would: no code of the explanations is used."""
    root, predictor, _, examples, _, explained = trained
    prepared = open_prepared(root / "prepared")
    ads, users = prepared.ads(), prepared.users()
    impressions = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])
    done = {"word": 0, "click": 0, "interests": 0, "query": 0, "scenario": 0}
    for row, found in explained.items():
        for part in found.parts[:6]:
            one = impressions.slice(row, 1)
            new_ads, new_users = ads, users
            kind = part.name if part.name == "scenario" else part.kind
            if kind == "word":
                seen = [*one["history_index"][0].as_py(), *one["skipped_index"][0].as_py()]
                if found.ad_id in {f"a{ad}" for ad in seen}:
                    continue  # the text of an ad that was clicked too stays as it was then
                here = pc.equal(ads["ad_id"], found.ad_id)
                cut = " ".join(word for word in found.text.split() if word != part.name)
                for name in ("text", "segmented"):
                    place = ads.column_names.index(name)
                    new_ads = new_ads.set_column(place, name, pc.if_else(here, cut, ads[name]))
            elif kind == "click":
                history, hours = one["history_index"][0].as_py(), one["history_hours"][0].as_py()
                gone = [place for place, ad in enumerate(history) if f"a{ad}" == part.name]
                if len(gone) != 1:
                    continue
                one = _with(one, history_index=[history[: gone[0]] + history[gone[0] + 1 :]])
                one = _with(one, history_hours=[hours[: gone[0]] + hours[gone[0] + 1 :]])
                one = _with(one, history_length=[one["history_length"][0].as_py() - 1])
            elif kind == "interests":
                here = pc.equal(users["user_id"], found.user_id)
                for name in ("text", "segmented"):
                    place = users.column_names.index(name)
                    new_users = new_users.set_column(place, name, pc.if_else(here, "", users[name]))
                place = users.column_names.index("interests")
                nothing = [
                    [] if mine else items for mine, items in zip(here.to_pylist(), users["interests"].to_pylist(), strict=True)
                ]
                new_users = new_users.set_column(place, "interests", pa.array(nothing, pa.list_(pa.string())))
            elif kind in ("query", "scenario"):
                one = _with(one, **{kind: [None]})
            else:
                continue
            done[kind] += 1
            catalogs = predictor.catalogs(new_ads, new_users)
            after = float(predictor.score_examples(predictor.examples_of(one), catalogs, baselines=False).score[0])
            # A text that is encoded in other company may differ in its last bits, where a tree may split.
            assert after == pytest.approx(part.without, abs=1e-3 if kind == "word" else 1e-6)
            assert (after < found.score) == (part.contribution > 0)
    assert all(done[kind] >= 3 for kind in ("word", "click", "interests", "query")), done


def _with(table, **columns):
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table[name].type))
    return table


def test_interests_and_search_speak_for_the_ads_they_match_and_against_others(trained):
    root, _, catalogs, examples, explainer, _ = trained
    topic = {word: name for name in TOPICS for word in WORDS[name].split()}
    signs = {("interests", True): [], ("interests", False): [], ("query", True): [], ("query", False): []}
    for row in range(0, len(examples), max(1, len(examples) // 60)):
        found = explainer.explain(examples, row)
        about = topic[found.title.split()[0]]
        for part in found.parts:
            if part.kind in ("interests", "query"):
                signs[part.kind, part.value == about].append(part.contribution)
    assert np.mean(np.array(signs["interests", True]) > 0) > 0.9  # each is what its user likes best
    assert np.mean(signs["interests", True]) > np.mean(signs["interests", False])
    kinds = {change.kind for change in found.changes}
    assert {"interests", "category"} <= kinds


def test_counterfactuals_are_there_without_interests_search_each_click_and_all(trained):
    _, _, _, examples, explainer, _ = trained
    lengths = examples.histories.lengths[examples.history_of_row]
    row = int(np.flatnonzero((lengths >= 3) & (examples.query > 0))[0])
    found = explainer.explain(examples, row)
    kinds = [change.kind for change in found.changes]
    assert kinds.count("click") == lengths[row] and kinds.count("clicks") == 1
    assert kinds.count("interests") == kinds.count("query") == 1
    by_name = {(part.kind, part.name): part.without for part in found.parts}
    for change in found.changes:
        if (change.kind, change.name) in by_name and change.kind in ("interests", "query"):
            assert change.score == pytest.approx(by_name[change.kind, change.name], abs=1e-6)


def test_what_several_say_together_is_no_single_ones_part(monkeypatch, trained):
    """Two like pieces of evidence, either of which is enough: taking one away changes nothing."""
    _, _, _, examples, explainer, _ = trained
    from adrec.inference.click_model import Scores

    def either(self, present):
        logit = np.float32(-2) + 3 * present[:, :2].any(axis=1) + present[:, 2]
        return Scores(logit.astype(np.float32), (1 / (1 + np.exp(-logit))).astype(np.float32), {}, {})

    monkeypatch.setattr(Variants, "scores", either)
    variants = Variants(explainer.predictor, explainer.catalogs, examples.take(np.array([0])), explainer.reader)
    score = 1 / (1 + np.exp(-2.0))
    baseline, parts, words = explainer._parts(variants, 2.0, score, np.random.default_rng(0))
    assert baseline == -2.0
    assert {part.kind: part.contribution for part in parts} == {"together": 3.0, "word": 1.0}
    assert [word.contribution for word in words] == [0.0, 0.0, 1.0]


def test_shapley_values_of_a_game_that_is_known():
    """v = a + 2 b + 4 a c: the product is shared by its two inputs."""

    def value(present):
        a, b, c = present.astype(float).T
        return a + 2 * b + 4 * a * c

    effects, empty, full = shapley(value, [np.array([0, 1]), np.array([2])], pairs=4, generator=np.random.default_rng(0))
    assert (empty, full) == (0.0, 7.0)
    assert effects.tolist() == [1 + 4 / 2, 2.0, 4 / 2]  # every order and its reverse: exact for pairs


def test_an_ad_no_one_saw_and_a_user_without_history_are_explained(trained):
    _, _, _, examples, explainer, _ = trained
    empty = np.flatnonzero(examples.histories.lengths[examples.history_of_row] == 0)
    assert len(empty)
    found = explainer.explain(examples, int(empty[0]))
    assert not [part for part in found.parts if part.kind == "click"]
    assert np.isfinite(found.logit)


def test_seeds_repeat(trained):
    _, _, _, examples, explainer, _ = trained
    assert explainer.explain(examples, 3, seed=1) == explainer.explain(examples, 3, seed=1)


def test_altered_texts_reach_no_cache_and_no_weight_changes(trained):
    root, predictor, _, examples, explainer, _ = trained
    before = {path: path.stat().st_mtime_ns for path in (root / "cache").rglob("*")}
    weights = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    explainer.explain(examples, 8)
    assert before == {path: path.stat().st_mtime_ns for path in (root / "cache").rglob("*")}
    assert all(torch.equal(value, weights[name]) for name, value in predictor.model.state_dict().items())
    assert not [module for module in predictor.packed.encoder.modules() if module._forward_hooks]


def test_a_bundle_without_text_explains_features(tmp_path):
    make_world(tmp_path / "prepared", requests=300, users=50)
    make_bundle(tmp_path)
    prepared = open_prepared(tmp_path / "prepared")
    predictor = Predictor.load(tmp_path / "bundle", device="cpu", verify=False)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    found = Explainer(predictor, catalogs, titles_of(prepared.ads())).explain(load_examples(prepared, "test"), 11)
    assert not found.words and {part.name for part in found.parts} >= {"counter_appeal", "category"}


def test_words_are_cut_as_a_reader_sees_them_and_a_long_text_in_stretches():
    text = "Red shoes, half price [SEP] 跑步鞋子"
    spans = stretches(text, ("[SEP]",))
    assert [text[start:end] for start, end in spans] == ["Red", "shoes", "half", "price", "跑步", "鞋子"]
    present = np.array([True, False, True, True, False, True])
    assert without(text, spans, present) == "Red , half price [SEP] 鞋子"
    assert without(text, spans, np.ones(6, bool)) == text and without(text, spans, np.zeros(6, bool)) == ""
    long = " ".join(f"word{number}" for number in range(500))
    spans = stretches(long)
    assert len(spans) == MOST_STRETCHES and spans[0][0] == 0 and spans[-1][1] == len(long)


@pytest.mark.parametrize(
    ("name", "english", "chinese"),
    [
        ("counter_ad_rate_24h", "recent click rate of this ad (half-life 24 h)", "近期（24 小时半衰）该广告的点击率"),
        ("counter_user_x_category_clicks", "clicks of this user with this category", "该用户与该类别的点击次数"),
        ("counter_ad_impressions", "impressions of this ad", "该广告的展示次数"),
        ("counter_all_rate", "click rate of all ads", "全部广告的点击率"),
        ("counter_ad_hours_since_first", "hours since the first impression of this ad", "该广告首次展示至今的小时数"),
        ("counter_advertiser_conversion_rate", "conversion rate of this advertiser", "该广告主的转化率"),
        ("counter_category_history_share", "share of this category among earlier clicks", "历史点击中该类别的占比"),
        ("shown_at_hour", "hour of the day", "时段"),
        ("ad@price", "price", "价格"),
        ("my_own_column", "my own column", "my own column"),
    ],
)  # fmt: skip
def test_features_are_named_in_words(name, english, chinese):
    assert feature_name(name) == english
    assert feature_name(name, chinese=True) == chinese


def test_an_english_ad_with_a_chinese_word_is_english_and_the_reader_chooses_the_language(trained):
    root, predictor, _, examples, _, _ = trained
    prepared = open_prepared(root / "prepared")
    ads = prepared.ads()
    mixed = pa.array([f"{text} 茶" for text in ads["text"].to_pylist()])
    catalogs = predictor.catalogs(ads.set_column(ads.column_names.index("text"), "text", mixed), prepared.users())
    found = Explainer(predictor, catalogs, titles_of(ads)).explain(examples, 5)
    assert found.language == "en" and found.reader == "en"
    assert sentence(found).startswith("Click probability") and sentence(found, "zh").startswith("点击概率")
    assert not any("\u4e00" <= letter <= "\u9fff" for letter in sentence(found).replace("茶", ""))
    users = prepared.users()
    for name in ("text", "segmented"):
        users = users.set_column(users.column_names.index(name), name, pa.array(["园艺"] * len(users)))
    plain = examples.take(np.array([int(np.flatnonzero(examples.query == 0)[0])]))
    reads = Explainer(predictor, predictor.catalogs(ads, users), titles_of(ads)).explain(plain, 0)
    assert reads.language == "en" and reads.reader == "zh" and sentence(reads).startswith("点击概率")


def test_every_part_is_named_in_both_languages(trained):
    *_, explained = trained
    for found in explained.values():
        for part in found.parts:
            english, chinese = (part_label(part, chinese=flag) for flag in (False, True))
            assert english and chinese and "counter_" not in english + chinese
    match, any_ad = (Part("interests", "interests", "tea", 1.0, for_others=others) for others in (0.2, 0.8))
    assert part_label(match, chinese=True) == "与兴趣“tea”的匹配"
    assert part_label(any_ad, chinese=False) == "your interests, as for most ads: tea"
    told = replace(found, parts=[any_ad, Part("click", "a1", "Red shoes", 0.5)])
    assert "interests" not in sentence(told, "en") and "your click on “Red shoes”" in sentence(told, "en")


def test_what_interests_do_to_other_ads_is_told_apart_from_the_match(trained):
    """By the definition, with the other ads as the candidates."""
    _, predictor, catalogs, examples, explainer, _ = trained
    one = examples.take(np.array([4]))
    variants = Variants(predictor, catalogs, one, explainer.reader)
    [number] = [number for number, item in enumerate(variants.inputs) if item.kind == "interests"]
    others = explainer._for_others(variants, np.random.default_rng(3))
    drawn = np.setdiff1d(np.random.default_rng(3).choice(len(catalogs.ads), OTHER_ADS), [variants.ad])
    gains = []
    for ad in drawn:
        other = Variants(predictor, catalogs, replace(one, ad_index=np.array([ad], np.int32)), explainer.reader)
        present = np.ones((2, len(other.inputs)), bool)
        present[0, [item.kind == "interests" for item in other.inputs]] = False
        logits = other.scores(present).logit
        gains.append(float(logits[1] - logits[0]))
    assert others[number] == pytest.approx(np.mean(gains), abs=1e-5)


def test_the_command_writes_a_page_and_a_sentence(trained, tmp_path):
    root, *_ = trained
    settings = [
        f"bundle={root / 'bundle'}", f"prepared={root / 'prepared'}", "split=test", f"output={tmp_path / 'why'}",
        "rows=2", f"cache={root / 'cache'}",
    ]  # fmt: skip
    score(load_config(None, ScoreConfig, [*settings[:3], f"output={tmp_path / 'scored.parquet'}", settings[-1]]), QUIET)
    scored = pq.read_table(tmp_path / "scored.parquet")
    result = explain(load_config(None, ExplainConfig, settings), QUIET)
    written = json.loads((tmp_path / "why" / "explanations.json").read_text(encoding="utf-8"))
    page = (tmp_path / "why" / "explanations.html").read_text(encoding="utf-8")
    assert len(written["rows"]) == 2
    for row, told in enumerate(written["rows"]):
        assert told["score"] == pytest.approx(scored["score"][row].as_py(), abs=1e-6)
        assert told["baseline"] + sum(part["contribution"] for part in told["parts"]) == pytest.approx(told["logit"], abs=1e-9)
    assert result.rows[0].explanation.title in page and "match with your interests" in page
    assert "http" not in page
    chinese = explain(load_config(None, ExplainConfig, [*settings, "language=zh"]), QUIET)
    assert chinese.rows[0].sentence.startswith("点击概率")
    assert "为什么投放这些广告" in (tmp_path / "why" / "explanations.html").read_text(encoding="utf-8")
    with pytest.raises(DataError, match="no row of user_id=nobody"):
        explain(load_config(None, ExplainConfig, [*settings, "user_id=nobody"]), QUIET)


def test_overall_the_inputs_that_carry_the_clicks_lose_most_and_evaluate_draws_them(trained, tmp_path):
    root, *_ = trained
    settings = [
        f"bundle={root / 'bundle'}", f"prepared={root / 'prepared'}", "split=train", f"output={tmp_path / 'overall'}",
        "overall=true", "overall_rows=3000", f"cache={root / 'cache'}",
    ]  # fmt: skip
    result = explain(load_config(None, ExplainConfig, settings), QUIET)
    found = {one.name: one for one in result.importance}
    assert found["interests"].low > 0 and found["ad text"].low > 0  # in this world the topic tells, and who likes it
    removed = {one.name: one for one in result.removal}
    assert removed["interests"].rows == 200 and removed["interests"].mean_size > removed["scenario"].mean_size
    assert removed["interests"].speaks_for + removed["interests"].speaks_against <= 1
    assert all(one.low <= one.increase <= one.high for one in result.importance)
    again = explain(load_config(None, ExplainConfig, settings), QUIET)
    assert again.importance == result.importance and again.dependence == result.dependence
    assert all(0 <= score <= 1 for one in result.dependence for score in one.scores)

    score(
        load_config(
            None, ScoreConfig,
            [f"bundle={root / 'bundle'}", f"prepared={root / 'prepared'}", "split=test", f"output={tmp_path / 's.parquet'}"],
        ),
        QUIET,
    )  # fmt: skip
    judge = [f"scored={tmp_path / 's.parquet'}", f"output={tmp_path / 'judged'}", "bootstrap.replicates=10"]
    evaluate(load_config(None, EvaluateConfig, [*judge, f"importance={tmp_path / 'overall'}"]), QUIET)
    page = (tmp_path / "judged" / "report.html").read_text(encoding="utf-8")
    assert "What the model lives on" in page and "Importance of inputs" in page and "words of the ad" in page
    for other in ({}, {"importance": [{"name": "of an earlier version"}], "dependence": [], "rows": 1}):
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(DataError, match="explain --global"):
            evaluate(load_config(None, EvaluateConfig, [*judge, f"importance={tmp_path / 'other.json'}"]), QUIET)
