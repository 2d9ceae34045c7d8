#!/usr/bin/env python
"""`xtoolkit predict` from a checkout: see xtoolkit/cli/predict.py."""

import sys

from xtoolkit.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
