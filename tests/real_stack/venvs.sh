#!/bin/bash
# venvs.sh NAME...: makes Python 3.6 environments of the real stack, once, in the cache: `manager`, `client` (which want different
# versions of aiohttp), `agent`. Prints their folders. Exits with 77 and one line when this machine has no Python 3.6.
# venvs.sh --python: prints the Python 3.6 that they are made with.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

find_python() {
  local candidate
  for candidate in "${BACKENDAI_PY36:-}" "$HOME"/.pyenv/versions/3.6.*/bin/python3.6 "$(command -v python3.6 || true)"; do
    [ -n "$candidate" ] && [ -x "$candidate" ] || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 6))' 2> /dev/null && { echo "$candidate"; return; }
  done
  return 1
}

# make NAME: the environment with requirements/NAME.txt, pinned by requirements/NAME.constraints.txt
make_venv() {
  local name=$1 folder temporary
  folder=$cache/real-stack/$name-$(key "$here/requirements/$name.txt" "$here/requirements/$name.constraints.txt" <(echo "$python" 3))
  if [ ! -e "$folder/.complete" ]; then
    say "Python 3.6 environment for the 19.03 $name (once; minutes)"
    rm -rf "$folder"
    mkdir -p "$folder"
    "$python" -m venv --clear "$folder"
    if ! { "$folder/bin/python" -m pip install -q -U 'pip==21.3.1' 'setuptools==59.6.0' 'wheel==0.37.1' &&
           "$folder/bin/python" -m pip install -q -r "$here/requirements/$name.txt" -c "$here/requirements/$name.constraints.txt"; } \
         > "$folder/pip.log" 2>&1; then
      tail -20 "$folder/pip.log" >&2
      die "pip could not make the $name environment (log: $folder/pip.log)"
    fi
    touch "$folder/.complete"
  fi
  echo "$folder"
}

python=$(find_python) || { echo "Python 3.6 (set BACKENDAI_PY36, or install it with pyenv)"; exit 77; }
if [ "$1" = --python ]; then echo "$python"; exit; fi
need_apt gcc g++ libsnappy-dev > /dev/null
for name in "$@"; do locked "real-stack-$name" make_venv "$name"; done
