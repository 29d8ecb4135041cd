"""Programs that reproduce the experiments; run them as `python -m experiments.NAME`."""

import os

# TensorFlow prints pages of start-up notes otherwise; set before anything imports it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
