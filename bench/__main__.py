"""`python -m bench`: list recipes, run one, draw the report."""

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
