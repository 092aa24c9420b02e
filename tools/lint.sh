#!/bin/bash
# The checks a change must pass: tools/lint.sh [--fix]. With --fix, the formatters rewrite files.
# clang-format's output differs between versions, so the pinned one of .venv is used, else a system
# one of the same major version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fix=${1:-}
status=0
check() { # check NAME COMMAND...
  local name=$1
  shift
  if "$@"; then printf 'lint: %s ok\n' "$name"; else printf 'lint: %s FAILED\n' "$name"; status=1; fi
}

format=
for candidate in .venv/bin/clang-format clang-format-14 clang-format; do
  if command -v "$candidate" > /dev/null && "$candidate" --version | grep -q 'version 14\.'; then
    format=$candidate
    break
  fi
done
[ -n "$format" ] || { echo 'lint: clang-format: found none of version 14; run make setup' >&2; exit 1; }

mapfile -d '' sources < <(git ls-files -z '*.cpp' '*.h' '*.cu' '*.cuh')
if [ "$fix" = --fix ]; then
  "$format" -i "${sources[@]}"
  .venv/bin/ruff format -q .
  .venv/bin/ruff check -q --fix . || true  # what it cannot fix is reported below
fi
check clang-format "$format" --dry-run -Werror "${sources[@]}"
check 'ruff check' .venv/bin/ruff check -q .
check 'ruff format' .venv/bin/ruff format -q --check .
check layers .venv/bin/python tools/check_layers.py
check style .venv/bin/python tools/check_style.py
check 'README figures' .venv/bin/python tools/update_readme.py --check
exit "$status"
