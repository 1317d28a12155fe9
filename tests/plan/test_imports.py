# SPDX-License-Identifier: Apache-2.0
"""The room of plans is data: it can be read where neither SGLang nor torch is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import redknot_sglang

FOLDER = Path(redknot_sglang.__file__).parent / "plan"


def test_plans_import_neither_sglang_nor_torch() -> None:
    files = [path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.py") if path.stem != "__init__"]
    imports = "; ".join(f"import redknot_sglang.plan.{'.'.join(path.parts)}" for path in files)
    check = "import sys; print(sorted({'torch', 'sglang', 'transformers'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, check=True)
    assert files and found.stdout.strip() == "[]"
