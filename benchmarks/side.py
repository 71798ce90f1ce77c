"""One measured side in a process of its own: `python -m benchmarks.side WHO WORK WARM SETTINGS`.

WHO is `module:function` of this package, called with (pacer, work directory, **settings); see `lap`.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from benchmarks.lap import Pacer


def main() -> None:
    who, work, warm, settings = sys.argv[1:]
    module, _, function = who.partition(":")
    pacer = Pacer(int(warm))
    try:
        getattr(importlib.import_module(f"benchmarks.{module}"), function)(
            pacer, Path(work), **json.loads(settings)
        )
        raise RuntimeError("the side came to an end of its own")
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        pacer.answer({"error": f"{type(error).__name__}: {first}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
