"""Command line: ``python -m tests.reference FILE.npz [FILE.npz ...]``.

Prints ``FILE KEY ERROR TOLERANCE ok|FAIL|skip`` per expected output. Exit code 0 if all agree,
1 after a failure, or for a file or a key that it does not know how to compute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.reference.registry import run_file


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks all files and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reference",
        description="Recompute the expected outputs of reference fixtures.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.npz")
    failed = False
    for file in parser.parse_args(arguments).files:
        try:
            results = run_file(file)
        except ValueError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        for result in results:
            error, tolerance = _number(result.error), _number(result.tolerance)
            print(file, result.key, error, tolerance, result.status, flush=True)
            if result.status == "FAIL":
                failed = True
                if result.note:
                    print(f"{file} {result.key}: {result.note}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
