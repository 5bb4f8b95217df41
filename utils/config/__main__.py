"""`python -m utils.config --schema` prints the JSON schema with which editors check configuration files."""

import json
import sys

from utils.config.schema import Config, schemas

if sys.argv[1:] != ["--schema"]:
    sys.exit("usage: python -m utils.config --schema")
print(json.dumps({**Config.model_json_schema(), "properties": schemas()}, indent=2))
