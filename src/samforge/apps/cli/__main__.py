"""``python -m samforge.apps.cli``: the command line without its script."""

from __future__ import annotations

import sys

from samforge.apps.cli import main

sys.exit(main())
