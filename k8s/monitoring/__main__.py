"""Writes dashboards, PrometheusRule and the tables of docs/monitoring.md: `python -m k8s.monitoring`.

With `--check` nothing is written: the exit status says whether the files are what the code comes to.
"""

from __future__ import annotations

import os
import sys

from k8s.monitoring.generated import HERE, files


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` say which are not as they should be; the exit status."""
    is_check = "--check" in arguments
    root = HERE.parent.parent
    stale = []
    for path, text in files().items():
        current = path.read_text(encoding="utf-8") if path.exists() else None
        if current == text:
            continue
        stale.append(os.path.relpath(path, root))
        if not is_check:
            path.write_text(text, encoding="utf-8")
    if stale and is_check:
        sys.stderr.write(
            f"error: not as the code has it: {', '.join(stale)}\nhint: run `python -m k8s.monitoring` and commit\n"
        )
        return 1
    if stale:
        sys.stderr.write(f"written: {', '.join(stale)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
