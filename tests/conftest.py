"""Shared by all tests: one thread, since the tests run beside each other; `worlds` can be imported from anywhere."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
