"""``python -m hermes.phantoms samples|check|pictures FOLDER``: writes or checks the sample data, or draws."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hermes.phantoms.pictures import write_pictures
from hermes.phantoms.samples import differences, write_samples


def _progress(done: int, total: int) -> None:
    sys.stderr.write(f"\r{done}/{total} samples" + ("\n" if done == total else ""))
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (1 where ``check`` finds a difference)."""
    parser = argparse.ArgumentParser(prog="python -m hermes.phantoms", description=__doc__)
    parser.add_argument("what", choices=("samples", "check", "pictures"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if options.what == "check":
        found = list(differences(options.folder))
        sys.stderr.write("".join(f"{line}\n" for line in found) or "All files are as the manifest says.\n")
        return 1 if found else 0
    if options.what == "samples":
        write_samples(options.folder, on_sample=_progress)
    else:
        write_pictures(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
