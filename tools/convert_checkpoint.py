#!/usr/bin/env python
"""`xtoolkit convert` from a checkout: see xtoolkit/cli/convert.py."""

import sys

from xtoolkit.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
