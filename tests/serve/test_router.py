# SPDX-License-Identifier: Apache-2.0
"""Who may call what."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from sglang.srt.utils.auth import AuthLevel, _get_auth_level_from_app_and_scope

from redknot_sglang.serve.router import add_routes


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [
        ("GET", "/redknot/status", AuthLevel.NORMAL),
        ("POST", "/redknot/segments", AuthLevel.NORMAL),
        ("GET", "/redknot/segments", AuthLevel.ADMIN_OPTIONAL),
        ("DELETE", "/redknot/segments", AuthLevel.ADMIN_OPTIONAL),
        ("GET", "/redknot/inspect", AuthLevel.ADMIN_OPTIONAL),
        ("GET", "/redknot/inspect.json", AuthLevel.ADMIN_OPTIONAL),
    ],
)
def test_sglang_sees_the_level_of_each_route(method: str, path: str, level: AuthLevel) -> None:
    app = FastAPI()
    add_routes(app)
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    assert _get_auth_level_from_app_and_scope(app, scope) is level
