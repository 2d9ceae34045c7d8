#!/usr/bin/env python
"""`xtoolkit zoo` from a checkout: see xtoolkit/cli/zoo.py."""

import sys

from xtoolkit.cli.zoo import main

if __name__ == "__main__":
    sys.exit(main())
