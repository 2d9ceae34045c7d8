#!/usr/bin/env python
"""`xtoolkit plan` from a checkout: see xtoolkit/cli/plan.py."""

import sys

from xtoolkit.cli.plan import main

if __name__ == "__main__":
    sys.exit(main())
