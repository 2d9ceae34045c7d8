#!/usr/bin/env python
"""`xtoolkit show` from a checkout: see xtoolkit/cli/show.py."""

import sys

from xtoolkit.cli.show import main

if __name__ == "__main__":
    sys.exit(main())
