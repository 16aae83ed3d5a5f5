"""The published JSON schema of record.json.

python -m rowsft.record.schema          # writes docs/record.schema.json of this checkout
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rowsft.record.migration import SCHEMA_VERSION
from rowsft.record.parts import RecordFile

PATH = Path(__file__).parents[2] / "docs" / "record.schema.json"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a record of today's version. Keys that it does not name may be anything."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(RecordFile).json_schema(),
        "title": f"record.json of a run of rowsft, schema_version {SCHEMA_VERSION}",
    }


def text() -> str:
    """Return the contents of docs/record.schema.json."""
    return json.dumps(json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
