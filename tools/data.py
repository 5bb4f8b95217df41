"""`python -m tools.data NAME --data_root DIR`: the same as `python -m utils.data`, beside the other commands."""

if __name__ == "__main__":
    from utils.console import start

    start()

import sys

from utils.data.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
