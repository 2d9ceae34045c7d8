#!/usr/bin/env python
"""`xtoolkit train` from a checkout: see xtoolkit/cli/train.py."""

import sys

from xtoolkit.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
