#!/usr/bin/env bash
# Makes $VENV with exactly the versions of constraints.txt. Called by `make install`.
set -euo pipefail

fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

[ -n "${PYTHON:-}" ] || fail "expected Python 3.10, 3.11 or 3.12, found none; install one (Debian: apt install python3 python3-venv)"
"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' ||
  fail "expected Python 3.10 to 3.12, $PYTHON is $("$PYTHON" -V); name another with: make PYTHON=python3.11 ..."

echo "== 1/4 environment in $VENV ($("$PYTHON" -V))"
"$PYTHON" -m venv "$VENV" || fail "could not make a virtual environment (Debian: apt install python3-venv, then again)"
pip() { "$VENV/bin/python" -m pip "$@" --disable-pip-version-check; }
pip install --quiet --upgrade pip "setuptools==80.9.0" "wheel==0.45.1"

echo "== 2/4 PyTorch"
pip install --progress-bar on -c constraints.txt numpy torch

# sam2 (asked for by MONAI Label, not used here) builds from source against torch; in pip's own build
# environment that would fetch a second copy of torch.
echo "== 3/4 MONAI Label and the rest"
SAM2_BUILD_CUDA=0 pip install --quiet --no-build-isolation -c constraints.txt sam2
pip install --progress-bar off -c constraints.txt -e ".[server,dev]" |
  awk '/^Collecting/ { printf "\r   %d packages", ++n; fflush() } /^Installing/ { printf ", installing ..."; fflush() } END { print "" }'

echo "== 4/4 check"
"$VENV/bin/python" -c 'import monailabel, hermes' || fail "the environment does not import; please report with the output above"
echo "installed in $VENV"
