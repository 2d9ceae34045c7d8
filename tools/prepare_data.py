#!/usr/bin/env python
"""`xtoolkit prepare` from a checkout: see xtoolkit/cli/prepare.py."""

import sys

from xtoolkit.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
