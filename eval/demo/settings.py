# SPDX-License-Identifier: Apache-2.0
"""How much the demo runs, and the flags of the two servers that make them comparable."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from redknot_sglang.measure.launch import CPU_ENVIRONMENT, CPU_FLAGS

MODEL = Path(__file__).resolve().parent.parent / "model"
HEAD_MAP = MODEL / "head_map.json"
STOCK, REDKNOT = "stock SGLang", "SGLang --redknot"
SERVERS = (STOCK, REDKNOT)

ANSWER_TOKENS = 64
_TEMPLATE_TOKENS = 64
# The tokens of a prefill chunk hold local slots until the window has passed them. SGLang's own default would take a
# good part of so small a local pool, and cached tails would have to make room.
_CHUNK = 1024


@dataclass(frozen=True)
class Settings:
    """Sizes of the workload.

    device: `cpu` or `cuda`.
    conversations: conversations through the OpenAI client.
    frontend_conversations: conversations through SGLang's frontend language.
    turns: turns of each.
    length: document tokens of a conversation.
    concurrency: requests in flight in the conversations.
    fill_requests: requests that are sent at once to see how many are held.
    fill_length: tokens of each of their prompts.
    fill_answer: tokens of each of their answers.
    start_timeout: seconds until a server must answer.
    """

    device: str
    conversations: int = 8
    frontend_conversations: int = 3
    turns: int = 4
    length: int = 3072
    concurrency: int = 2
    fill_requests: int = 24
    fill_length: int = 2048
    fill_answer: int = 16
    start_timeout: float = 300

    @property
    def context(self) -> int:
        """Tokens of a whole conversation, answers included, at most."""
        return self.length + self.turns * (ANSWER_TOKENS + _TEMPLATE_TOKENS)

    @property
    def kv_tokens(self) -> int:
        """Tokens that stock SGLang may keep: half of all conversations, so that not all can stay cached."""
        return self.conversations * self.context // 2

    @property
    def kv_budget(self) -> int:
        """Bytes that both servers may use for KV."""
        return self.kv_tokens * self.bytes_per_token

    @property
    def bytes_per_token(self) -> int:
        """Bytes of KV that stock SGLang keeps for a token of the embedded model."""
        config = json.loads((MODEL / "config.json").read_text())
        values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        return int(values) * (4 if self.device == "cpu" else 2)

    def server_flags(self, server: str) -> list[str]:
        """Flags of `launch_server` for one of `SERVERS`; they differ only in what is being shown."""
        common = [
            f"--model-path={MODEL}",
            "--served-model-name=embedded",
            f"--context-length={2 * self.context}",
            f"--max-running-requests={self.fill_requests}",
            "--enable-cache-report",
            f"--chunked-prefill-size={_CHUNK}",
            *(CPU_FLAGS if self.device == "cpu" else ("--dtype=bfloat16",)),
        ]
        if server == STOCK:
            return [*common, f"--max-total-tokens={self.kv_tokens}"]
        return [
            *common,
            "--redknot",
            f"--redknot-head-map={HEAD_MAP}",
            f"--redknot-kv-budget={self.kv_budget}",
            f"--redknot-context-length={self.context}",
        ]

    def server_environment(self) -> dict[str, str]:
        """Environment of both servers."""
        return dict(CPU_ENVIRONMENT) if self.device == "cpu" else {}
