#!/bin/bash
# Makes the root file system of a stand-in for the env image of the 19.03 kernel runner, once, in the cache: Python 3.6 with the
# runner's libraries in /opt/backend.ai, as the published image holds them. Prints the tar's path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

prefix=$(dirname "$(dirname "$(readlink -f "$("$here/venvs.sh" --python)")")")

build() {
  local tar=$1 root
  [ ! -e "$tar" ] || return 0
  say "root file system with the kernel runner's Python of 2019 (once)"
  root=$(mktemp -d "$cache/real-stack/krunner.XXXXXX")
  mkdir -p "$root/opt/backend.ai"
  cp -a "$prefix"/{bin,lib} "$root/opt/backend.ai/"
  rm -rf "$root"/opt/backend.ai/lib/python3.6/{test,idlelib,tkinter,lib2to3,config-*} "$root"/opt/backend.ai/lib/*.a
  find "$root" -name __pycache__ -type d -prune -exec rm -rf {} +
  if ! "$prefix/bin/python3.6" -m pip install -q --disable-pip-version-check --no-compile --ignore-installed \
      --target "$root/opt/backend.ai/lib/python3.6/site-packages" -r "$here/requirements/krunner.txt" > "$tar.log" 2>&1; then
    rm -rf "$root"
    tail -20 "$tar.log" >&2
    die "pip could not install the runner's libraries (log: $tar.log)"
  fi
  # where the agent of 2019 mounts its runner
  mkdir -p "$root"/opt/backend.ai/{hook,lib/python3.6/site-packages/ai/backend/{kernel,helpers}}
  ln -sf python3.6 "$root/opt/backend.ai/bin/python"
  tar -C "$root" --numeric-owner --owner=0 --group=0 -cf "$tar.tmp" opt
  rm -rf "$root"
  mv "$tar.tmp" "$tar"
}

tar=$cache/real-stack/krunner-env-$(key "$here/requirements/krunner.txt" "$here/krunner-env.sh").tar
locked real-stack-krunner build "$tar"
echo "$tar"
