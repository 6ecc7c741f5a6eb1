"""`python -m periodic_lib` is `periodic`."""

import sys

from periodic_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
