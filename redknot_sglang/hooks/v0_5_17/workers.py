# SPDX-License-Identifier: Apache-2.0
"""SGLang's tokenizer workers (`--tokenizer-worker-num`): processes that each have an HTTP server and a tokenizer.

They are started by the web server, not by SGLang, so no plugin is loaded in them. What they do get is the server's arguments, as a
pickle, and they ask these for the class of their tokenizer manager. An attribute on the arguments answers that question before
SGLang's method does: it loads the plugins first.
"""

from __future__ import annotations

from typing import Any


def bring_plugins(server_args: Any) -> None:
    """Have plugins loaded in the tokenizer workers of a server, if it has any.

    server_args: SGLang's ServerArgs; it gets an attribute more, which travels with its pickle.
    """
    if server_args.tokenizer_worker_num > 1:
        hidden = server_args.get_tokenizer_worker_class
        object.__setattr__(server_args, hidden.__name__, worker_class)


def worker_class() -> Any:
    """SGLang's class of a worker's tokenizer manager, once the seams are in place and the application has our routes.

    Raises SeamError if a seam did not take hold in this process.
    """
    from redknot_sglang import seams
    from redknot_sglang.seams.sglang import TokenizerWorker, app, load_plugins
    from redknot_sglang.serve.router import add_routes

    load_plugins()
    seams.verify()
    add_routes(app)
    return TokenizerWorker
