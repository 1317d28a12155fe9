# SPDX-License-Identifier: Apache-2.0
"""Calls `/redknot/segments` of a running server over HTTP, with the standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

from redknot_sglang.errors import CliError


class SegmentsClient:
    """A server with --redknot.

    url: its address, with or without /v1.
    api_key: sent with every call, or None.
    timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout

    def preload(self, segments: Sequence[Any], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Have segments computed.

        segments: texts, or lists of token ids.
        fields: the other fields of the body.
        Returns `tokens` and `new` of each, in order. Raises CliError if the server does not answer or refuses.
        """
        try:
            return self._call({"segments": segments, **fields})
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from error

    def listed(self) -> list[dict[str, Any]] | None:
        """The segments that the server lists, or None if it needs an admin key for that. Raises CliError."""
        try:
            return self._call(None)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return None
            raise self._refusal(error) from error

    def _call(self, body: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self._url + "/redknot/segments", data, self._headers)
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return list(json.load(answer))
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            raise CliError(f"no server answers at {self._url}: {error.reason}; start one, or give --url") from error
        except (TimeoutError, HTTPException, OSError, ValueError) as error:
            raise CliError(
                f"{self._url} did not answer as a server with --redknot does: {error}; check --url and --timeout"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError) -> CliError:
        text = error.read().decode(errors="replace")
        if error.code == 404:
            return CliError(f"{self._url} has no /redknot/segments; start the server with --redknot")
        if error.code in (401, 403):
            return CliError(f"{self._url} wants a key; give it with --api-key")
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, TypeError, KeyError):
            text = " ".join(text.split())[:500]
        return CliError(f"the server refused ({error.code}): {text}")
