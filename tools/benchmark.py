#!/usr/bin/env python
"""`xtoolkit benchmark` from a checkout: see xtoolkit/cli/benchmark.py."""

import sys

from xtoolkit.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
