"""`python -m benchmarks [--quick]`: run the benchmarks one after the other and write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"


def run(*arguments: str) -> list[dict[str, object]]:
    """The JSON lines that a benchmark prints."""
    print("python " + " ".join(arguments), file=sys.stderr)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def corpus(path: Path, megabytes: float) -> None:
    """Text records of repeated source code of this repository: real words, no downloads."""
    texts = [p.read_text() for p in sorted((ROOT / "rlhfkit").rglob("*.py"))]
    with open(path, "w") as file:
        written = 0
        while written < megabytes * 1e6:
            for text in texts:
                written += file.write(json.dumps({"text": text}) + "\n")


def table(rows: list[dict[str, object]]) -> str:
    """A Markdown table of records that may differ in their keys."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 3 minutes on a quiet machine")
    options = parser.parse_args()
    quick = ["--quick"] if options.quick else []
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "text.jsonl"
        corpus(text, 2 if options.quick else 20)
        parts = {
            "Start-up": run("-m", "benchmarks.startup"),
            "Records": run("benchmarks/jsonl.py", "5000" if options.quick else "50000"),
            "Tokenizing": run(
                "benchmarks/tokenizing.py", str(text), "--repeat", "1" if options.quick else "3"
            ),
            "Models": run("-m", "benchmarks.model", *quick),
        }
    libraries = ", ".join(
        f"{n} {version(n)}" for n in ("torch", "transformers", "tokenizers", "msgspec", "click")
    )
    command = "python -m benchmarks" + (" --quick" if options.quick else "")
    page = [
        "# Benchmarks",
        "",
        f"Measured by `{command}` on {time.strftime('%Y-%m-%d')}: {processor()}, "
        f"Python {platform.python_version()}, {libraries}. Read ratios rather than rates: peers run in turn "
        "with rlhfkit on the same machine, which may have been busy with other work. CPU seconds suffer less "
        "from that than wall time.",
        "",
        "The GPU benchmark is `python -m benchmarks.gpu`; it has not been run on a GPU yet.",
    ]
    for title, rows in parts.items():
        page += ["", f"## {title}", "", table(rows)]
    PAGE.write_text("\n".join(page) + "\n")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
