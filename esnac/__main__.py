"""`python -m esnac` is the command line."""

from __future__ import annotations

import sys

from esnac.cli import main

if __name__ == "__main__":
    sys.exit(main())
