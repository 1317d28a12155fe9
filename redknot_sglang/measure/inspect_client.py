# SPDX-License-Identifier: Apache-2.0
"""Asks a running server what its prefix cache holds, with the standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from redknot_sglang.errors import CliError


def read_inventory(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """What `GET /redknot/inspect.json` answers.

    url: the server's address, with or without /v1.
    api_key: the server's admin key, or None.
    timeout: seconds to wait.
    Raises CliError if no server answers as one with --redknot does.
    """
    base = url.rstrip("/").removesuffix("/v1")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        request = urllib.request.Request(f"{base}/redknot/inspect.json", headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            found: dict[str, Any] = json.load(answer)
        return found
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise CliError(f"{base} has no /redknot/inspect; start the server with --redknot") from error
        if error.code in (401, 403):
            raise CliError(f"{base} wants its admin key; give it with --api-key") from error
        raise CliError(f"{base} refused ({error.code}); its log says why") from error
    except urllib.error.URLError as error:
        raise CliError(f"no server answers at {base}: {error.reason}; start one, or give its address") from error
    except (TimeoutError, HTTPException, OSError, ValueError) as error:
        raise CliError(f"{base} did not answer as a server with --redknot does: {error}; check the address") from error
