"""`python -m telos`."""

import sys

from telos.cli import main

if __name__ == "__main__":
    sys.exit(main())
