"""Imported once, by the process from which the workers of `grading.authoring.suite_runner` are forked.

It imports what the suites of the labs import, so that no worker has to, and starts no thread: torch
keeps to one, because a forked process has only the thread that forked it. The garbage collector skips what is
imported here: otherwise a worker would copy every page it looks at, which takes four times as long as its tests.
"""

import gc
import importlib
import os
import sys

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import pytest  # noqa: F401
import torch

from labs.harness.catalog import all_labs
from labs.harness.suite.preload import import_plugins, import_what_is_imported_by

torch.set_num_threads(1)

_LATER = {
    "nano_qwen3_serving.testing.oracle": "transformers.models.qwen3.modeling_qwen3",
    "_hypothesis_pytestplugin": "hypothesis",
}
"""What a module imports only once it is used, or at the end."""

import_plugins()
import_what_is_imported_by(path for lab in all_labs() for path in (lab.tests, lab.solution, lab.seam))
for used, later in _LATER.items():
    if used in sys.modules:
        importlib.import_module(later)
gc.freeze()
