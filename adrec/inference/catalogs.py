"""Ads and users as scoring reads them, and how one ad of them changes without the others being made again."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.arrays import table_with_row, with_row
from adrec.data.batches.collate import QueryInputs, TextInputs
from adrec.data.examples import Catalog
from adrec.models.text.text_vectors import texts_with_row


@dataclass(frozen=True)
class Catalogs:
    """Ads and users made ready for scoring: features, texts, identifiers."""

    ads: Catalog
    users: Catalog
    ad_texts: TextInputs
    user_texts: TextInputs
    queries: QueryInputs | None
    cold_ad: NDArray[np.bool_]
    """(A,) no impression in training"""
    cold_user: NDArray[np.bool_]
    """(U,)"""
    ad_table: pa.Table
    """the ads as a table, with the texts that were made"""
    user_table: pa.Table

    def with_ad(self, row: int, own: "Catalogs") -> "Catalogs":
        """The same with the one ad of `own` at `row`, or behind the last."""
        ads, texts = texts_with_row(self.ads.with_row(row, own.ads), self.ad_texts, row, own.ad_texts)
        return replace(
            self,
            ads=ads,
            ad_texts=texts,
            cold_ad=with_row(self.cold_ad, row, own.cold_ad),
            ad_table=table_with_row(self.ad_table, row, own.ad_table),
        )
