"""Raw tables get the texts and words that preprocess would have given them."""

import pyarrow as pa
import pytest

from adrec.config.data.preprocess import TextSettings
from adrec.inference.rows import with_texts
from adrec.prepare.text.maker import TextMaker

SETTINGS = TextSettings(ad_template="{title} [SEP] {description}")
ADS = pa.table({"ad_id": ["a", "b"], "title": ["The <b>fast</b> car", "新款手机"], "description": [None, "五折"]})


@pytest.mark.parametrize("words", [True, False])
def test_made_as_preprocess_makes_them(words):
    whole, segmented, language = TextMaker(SETTINGS).render(SETTINGS.ad_template, ADS.to_batches()[0])
    table = with_texts(ADS, SETTINGS.ad_template, SETTINGS, words=words)
    assert table["text"].to_pylist() == whole.to_pylist() == ["The fast car", "新款手机 [SEP] 五折"]
    assert table["segmented"].to_pylist() == segmented.to_pylist()
    assert table["language"].to_pylist() == language.to_pylist() == ["en", "zh"]


def test_words_of_a_text_that_is_there_already():
    ready = pa.table({"ad_id": ["a"], "text": ["New 手机 新款"]})
    assert with_texts(ready, SETTINGS.ad_template, SETTINGS) is ready
    table = with_texts(ready, SETTINGS.ad_template, SETTINGS, words=True)
    assert table["text"].to_pylist() == ["New 手机 新款"]
    assert table["segmented"].to_pylist() == ["手机 新款"], "'new' is a stop word"
