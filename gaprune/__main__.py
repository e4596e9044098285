"""`python -m gaprune` is the command `gaprune`."""

import sys

from gaprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
