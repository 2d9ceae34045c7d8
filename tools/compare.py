#!/usr/bin/env python
"""`xtoolkit compare` from a checkout: see xtoolkit/cli/compare.py."""

import sys

from xtoolkit.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
