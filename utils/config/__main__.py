"""`python -m utils.config --schema` prints the JSON schema with which editors check configuration files."""

if __name__ == "__main__":
    from utils.console import start

    start()

import json
import sys

from utils.config.schema import Config, schemas
from utils.console import command


@command
def main() -> int:
    """Print the schema."""
    if sys.argv[1:] != ["--schema"]:
        print("usage: python -m utils.config --schema", file=sys.stderr)
        return 2
    print(json.dumps({**Config.model_json_schema(), "properties": schemas()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
