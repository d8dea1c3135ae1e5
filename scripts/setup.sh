# Makes .venv and installs the package; sourced by `quickstart` and `test`. Leaves the interpreter in $PY.
# PYTHON chooses the interpreter that .venv is made with.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
PY=.venv/bin/python

if [ ! -x "$PY" ] || [ ! -f .venv/ready ]; then
    if ! command -v "$PYTHON" >/dev/null 2>&1; then
        echo "$PYTHON is not installed: install Python 3.11 or newer, or name one with PYTHON=python3.12." >&2
        exit 2
    fi
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$PYTHON is $("$PYTHON" --version 2>&1 | tail -1), older than Python 3.11 or not usable: name a newer one with PYTHON=python3.12." >&2
        exit 2
    fi
    if ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$PYTHON lacks the module venv: install it (on Debian: apt-get install python3-venv)." >&2
        exit 2
    fi
    "$PYTHON" -m venv .venv
fi
# Installed anew whenever pyproject.toml changed since.
want="$1 $(cksum <pyproject.toml)"
if [ "$(cat .venv/ready 2>/dev/null)" != "$want" ] && [ "$(cat .venv/ready 2>/dev/null)" != "[dev]${want#"$1"}" ]; then
    echo "Installing into .venv (one to four minutes the first time) ..."
    rm -f .venv/ready
    if ! "$PY" -m pip install -qq --disable-pip-version-check --editable ".$1"; then
        free=$(df -Ph . | awk 'NR == 2 {print $4}')
        echo "Not installed, for pip's reason above: fix it and run this again. (.venv takes 7 GB; free on this disk: $free.)" >&2
        exit 1
    fi
    echo "$want" >.venv/ready
fi
