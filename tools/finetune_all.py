#!/usr/bin/env python
"""`xtoolkit finetune_all` from a checkout: see xtoolkit/cli/finetune_all.py."""

import sys

from xtoolkit.cli.finetune_all import main

if __name__ == "__main__":
    sys.exit(main())
