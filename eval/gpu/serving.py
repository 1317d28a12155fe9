# SPDX-License-Identifier: Apache-2.0
"""Step `serving`: requests a second of plain traffic, everything sent at once, by SGLang's own `sglang.benchmark.serving`.

Prompts are its `random-ids`, of which nothing is cached. They are token ids of the embedded model's vocabulary, since
shapes have no tokenizer, and answers come as a whole: a server without tokenizer streams no text, by which that
benchmark would recognise a first token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from eval.gpu.results import Cell
from eval.servers import ROOT, flush


def measure(url: str, side: str, length: int, folder: Path, prompts: int, answer: int, timeout: float = 400) -> Cell:
    """`prompts` requests of `length` tokens with answers of `answer`; what it prints goes to a log in `folder`.

    Raises RuntimeError with the end of the log if it fails or an answer is missing, subprocess.TimeoutExpired, OSError.
    """
    flush(url)
    out, log = folder / f"serving-{side}.jsonl", folder / f"serving-{side}.log"
    out.unlink(missing_ok=True)
    words = ["--backend=sglang", f"--base-url={url}", "--model=shape", f"--tokenizer={ROOT / 'model'}"]
    words += ["--dataset-name=random-ids", "--tokenize-prompt", "--disable-stream", "--disable-tqdm", "--seed=1"]
    words += [f"--num-prompts={prompts}", f"--random-input-len={length}", f"--random-output-len={answer}"]
    words += ["--random-range-ratio=1", "--flush-cache", f"--output-file={out}"]
    command = [sys.executable, "-m", "sglang.benchmark.serving", *words]
    with log.open("wb") as output:
        # It would look for a chat template of the model on the hub, and on a machine without network wait for it.
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=timeout, env=env).returncode
    found = json.loads(out.read_text()) if out.exists() else {"completed": 0}
    out.unlink(missing_ok=True)
    if code or found["completed"] != prompts:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise RuntimeError(f"{found['completed']} of {prompts} requests were answered, exit code {code}:\n{last}")
    details = {name: found[name] for name in ("completed", "duration", "output_throughput", "total_input_tokens")}
    case = f"{answer} tokens, {prompts} at once"
    return Cell("serving", side, case, length, "requests/s", [found["request_throughput"]], details)
