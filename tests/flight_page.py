"""docs/flight.md taken apart: what is to be run of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "flight.md").read_text()
_BLOCKS = re.findall(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
#: Code in its order, and the piece about changes, which wants a view that changes.
CODE = [text for kind, name, text in _BLOCKS if kind == "python" and not name]
[CHANGES] = [text for kind, name, text in _BLOCKS if (kind, name) == ("python", "changes")]
#: JSON by the name of what it shows.
JSON = {name: json.loads(text) for kind, name, text in _BLOCKS if kind == "json"}
