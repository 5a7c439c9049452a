"""Shared by all tests: one thread, since the tests run beside each other; `worlds` can be imported from anywhere.

No example of hypothesis is timed: a busy machine is no fault.
"""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("adrec", deadline=None)
settings.load_profile("adrec")
