#!/usr/bin/env python
"""`xtoolkit list` from a checkout: see xtoolkit/cli/list.py."""

import sys

from xtoolkit.cli.list import main

if __name__ == "__main__":
    sys.exit(main())
