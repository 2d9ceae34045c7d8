"""`python -m xtoolkit`."""

import sys

from xtoolkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
