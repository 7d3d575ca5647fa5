"""Speed: `python -m tests.benchmarks`."""

import utils  # noqa: F401  before torch, as in main.py
