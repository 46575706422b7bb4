# Sourced by quickstart and test: makes .venv with the pinned versions, once. Safe to repeat.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${ZOO_VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
export PIP_DISABLE_PIP_VERSION_CHECK=1

"$PYTHON" - <<'PY' || exit 2
import sys
if sys.version_info < (3, 11):
    sys.exit(f"image-zoo needs Python 3.11 or later; this is {sys.version.split()[0]}. Set PYTHON=python3.11, say.")
PY

setup() { # setup EXTRA: install the package with an extra, unless this very setup is in place already
    local extra="$1" stamp want
    stamp="$VENV/.image-zoo-$extra"
    want="$(cat pyproject.toml constraints.txt | sha256sum)"
    if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
    echo "installing into $VENV (once; a few minutes)"
    "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt torch
    "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".[$extra]"
    echo "$want" >"$stamp"
}
