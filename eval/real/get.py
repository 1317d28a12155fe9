# SPDX-License-Identifier: Apache-2.0
"""A pretrained model in a folder that SGLang and `redknot` load: what `make real` runs.

    python -m eval.real.get smollm2-135m
    python -m eval.real.get qwen2.5-coder-0.5b --gguf model.gguf

The folder is out/real/NAME, the GGUF file beside it out/real/NAME.gguf; whatever is there already is not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.real.fetch import check, fetch, need_room
from eval.real.models import MODELS
from redknot_sglang.errors import RedKnotError

OUT = Path("out/real")


def get(name: str, out: Path, gguf: Path | None = None) -> Path:
    """The folder of the model `name` under `out`, made if need be. gguf: a joined file that is at hand.

    Raises CliError where it cannot be made.
    """
    model, folder = MODELS[name], out / name
    if folder.is_dir():
        return folder
    source = gguf
    if source is None:
        source = out / f"{name}.gguf"
        fetch(model, source)
    else:
        check(model, source)
    out.mkdir(parents=True, exist_ok=True)
    need_room(out, model.folder_bytes)
    print(f"{name}: converting to bf16", file=sys.stderr)
    # transformers is loaded once there is something to convert.
    from eval.real.convert import convert

    convert(source, folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 with the folder on standard output, 2 if it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="eval.real.get", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS, help="name of a model")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where its folder goes (%(default)s)")
    parser.add_argument("--gguf", type=Path, metavar="F", help="the joined file, if it is at hand: nothing is fetched")
    args = parser.parse_args(argv)
    try:
        if args.gguf is not None and not args.gguf.is_file():
            parser.error(f"--gguf: there is no file {args.gguf}")
        print(get(args.model, args.out, args.gguf))
    except RedKnotError as error:
        print(f"eval.real.get: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
