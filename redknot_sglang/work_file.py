# SPDX-License-Identifier: Apache-2.0
"""Finished measurements on disk, so that an interrupted profile or certification goes on where it was.

A work file has a line of JSON per measurement, [key, value]; the key is a hash of all the measurement depends on. Lines
are only added. A line that a kill cut short is not JSON and counts as not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class WorkFile:
    """Measurements of this run and of earlier ones of the same command; `measured` counts those that this run made."""

    def __init__(self, path: Path | None, base: object) -> None:
        """Read what earlier runs left.

        path: the work file, made when the first value is kept, or None to keep nothing on disk.
        base: what all measurements depend on (model, data, options), as JSON types. Values of another base are not found.
        Raises OSError if the file cannot be read.
        """
        self.path, self.measured = path, 0
        self._base = json.dumps(base, sort_keys=True)
        self._known: dict[str, Any] = {}
        self._broken_end = False
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._broken_end = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    key, value = json.loads(line)
                except ValueError:
                    continue
                self._known[key] = value

    def once(self, what: object, measure: Callable[[], Any]) -> Any:
        """The value that is known for a measurement; if there is none it is made and kept.

        what: names the measurement, as JSON types.
        measure: makes the value, as JSON types.
        """
        if not self.knows(what):
            self.keep(what, measure())
        return self.known(what)

    def knows(self, what: object) -> bool:
        """Whether there is a value for `what`."""
        return self._key(what) in self._known

    def known(self, what: object) -> Any:
        """The value for `what`. Raises KeyError if there is none."""
        return self._known[self._key(what)]

    def keep(self, what: object, value: Any) -> None:
        """Remember a value and append it to the file at once, so that a kill loses none.

        what: names the measurement, as JSON types.
        value: what was measured, as JSON types, without NaN.
        """
        self.measured += 1
        key = self._key(what)
        line = json.dumps([key, value], allow_nan=False)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._broken_end + line + "\n")
            self._broken_end = False
        # Through JSON, so that a first run and one that goes on see the same numbers and key types.
        self._known[key] = json.loads(line)[1]

    def _key(self, what: object) -> str:
        return hashlib.sha256(f"{self._base}\n{json.dumps(what, sort_keys=True)}".encode()).hexdigest()
