# SPDX-License-Identifier: Apache-2.0
"""SGLang's HTTP server: the `/redknot` routes."""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.seams import Seam


def _add_routes(server_args: Any, *args: Any, **kwargs: Any) -> None:
    if active.config_of(server_args) is None:
        return
    from sglang.srt.entrypoints.http_server import app

    from redknot_sglang.serve.router import add_routes

    add_routes(app)


SEAMS = (
    Seam("sglang.srt.entrypoints.http_server._setup_and_run_http_server", _add_routes, "before", "the /redknot routes"),
)
