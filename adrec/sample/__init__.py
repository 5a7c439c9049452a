"""The built-in sample: a seeded world of bilingual ads, users and clicks whose true click probability is known.

`docs/data/sample.md` has the formulas and what the world is good for.
"""

from adrec.sample.clicks import Delays
from adrec.sample.generate import SampleSummary, generate_sample

__all__ = ["Delays", "SampleSummary", "generate_sample"]
