"""Loads one runtime and prints what it can use; ``doctor`` starts it in a process of its own.

A broken runtime often takes its process with it, and a sound one is slow to load.
"""

from __future__ import annotations

import json
import sys

from samforge.backends import backend_from_name
from samforge.core.targets import TARGETS
from samforge.core.telemetry import import_runtime


def _main(name: str) -> None:
    runtime = import_runtime(TARGETS[name].module)
    processors = backend_from_name(name).processors(runtime)
    found = {"version": str(runtime.__version__), "processors": processors}
    print(json.dumps(found))  # noqa: T201  # the answer to the process that started this one


if __name__ == "__main__":
    _main(sys.argv[1])
