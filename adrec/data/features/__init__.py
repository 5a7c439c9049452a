"""Features fitted once on training rows and applied everywhere: `FeatureSet.fit`, `.transform`, `.to_json`."""

from adrec.data.features.fitted import FeatureArrays, FeatureSet

__all__ = ["FeatureArrays", "FeatureSet"]
