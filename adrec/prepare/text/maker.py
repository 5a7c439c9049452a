"""Texts of rows as the config renders them: a template filled with cleaned columns, its words and its language."""

import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.data.preprocess import TextSettings
from adrec.prepare.text.clean import fill_template, gentle, language, load_stop_words, segmented, template_columns
from adrec.schema import ADS

_NO_WORDS = {column.name for column in ADS.columns if column.role in {"category", "id"}}


class TextMaker:
    """Cleans and renders texts as the config says."""

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings
        self.stop_words = load_stop_words(settings.stop_words, settings.extra_stop_words)

    def render(self, template: str, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Gentle text, segmented text and language of each row, (rows,) strings without null."""
        columns = {}
        for column in template_columns(template):
            if column in batch.schema.names:
                values = batch.column(column)
                columns[column] = self.clean(values) if pa.types.is_string(values.type) else values
        whole = pc.fill_null(fill_template(template, columns, batch.num_rows), "")
        words = [column for column in template_columns(template) if column not in _NO_WORDS]
        if words and len(words) < len(template_columns(template)):  # a category is no text by itself: it is often a code
            filled = fill_template("".join(f"{{{column}}}" for column in words), columns, batch.num_rows)
            whole = pc.if_else(pc.equal(pc.fill_null(filled, ""), ""), "", whole)
        return whole, *self.words(whole)

    def words(self, texts: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Segmented text and language of each text."""
        encoded = texts.dictionary_encode()
        words = segmented(encoded.dictionary, stop_words=self.stop_words, user_dictionary=self.settings.user_dictionary)
        return words.take(encoded.indices), language(encoded.dictionary).take(encoded.indices)

    def clean(self, values: pa.Array) -> pa.Array:
        """The gentle rendering of one column."""
        return gentle(values)


def language_where_written(texts: pa.Array, languages: pa.Array) -> pa.Array:
    """The language of what users write of themselves, null where they write nothing."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), languages)
