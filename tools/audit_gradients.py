#!/usr/bin/env python
"""`xtoolkit audit_gradients` from a checkout: see xtoolkit/cli/audit_gradients.py."""

import sys

from xtoolkit.cli.audit_gradients import main

if __name__ == "__main__":
    sys.exit(main())
