#!/usr/bin/env python
"""`xtoolkit ablate` from a checkout: see xtoolkit/cli/ablate.py."""

import sys

from xtoolkit.cli.ablate import main

if __name__ == "__main__":
    sys.exit(main())
