#!/bin/bash
# Makes the root file systems of two images for the Python agent of 2019, once, in the cache, and prints their tars' paths:
# a stand-in for the env image of its kernel runner (Python 3.6 with the runner's libraries in /opt/backend.ai, as the published
# image holds them), and the Python kernel image with the ipykernel that this runner drives.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

# pip_install LOG ARGUMENT...: pip of the environment `pip`, quietly.
pip_install() {
  local log=$1; shift
  "${pip[@]}" install -q --disable-pip-version-check --no-compile "$@" > "$log" 2>&1 || { tail -20 "$log" >&2; die "pip failed (log: $log)"; }
}

krunner_env() {
  local tar=$1 root=$1.root prefix pip
  [ ! -e "$tar" ] || return 0
  say "root file system of the kernel runner's Python of 2019 (once)"
  prefix=$(dirname "$(dirname "$(readlink -f "$("$here/venvs.sh" --python)")")")
  rm -rf "$root"
  mkdir -p "$root/opt/backend.ai"
  cp -a "$prefix"/{bin,lib} "$root/opt/backend.ai/"
  rm -rf "$root"/opt/backend.ai/lib/python3.6/{test,idlelib,tkinter,lib2to3,config-*} "$root"/opt/backend.ai/lib/*.a
  find "$root" -name __pycache__ -type d -prune -exec rm -rf {} +
  pip=("$prefix/bin/python3.6" -m pip)
  pip_install "$tar.log" --ignore-installed --target "$root/opt/backend.ai/lib/python3.6/site-packages" -r "$here/requirements/krunner.txt"
  # where the agent of 2019 mounts its runner
  mkdir -p "$root"/opt/backend.ai/{hook,lib/python3.6/site-packages/ai/backend/{kernel,helpers}}
  ln -sf python3.6 "$root/opt/backend.ai/bin/python"
  tar -C "$root" --numeric-owner --owner=0 --group=0 -cf "$tar.tmp" opt
  rm -rf "$root"
  mv "$tar.tmp" "$tar"
}

kernel_image() {
  local tar=$1 root=$1.root pip
  [ ! -e "$tar" ] || return 0
  say "root file system of a kernel image with ipykernel (once)"
  need_apt python3 python3-venv
  rm -rf "$root" "$root.venv"
  python3 -m venv "$root.venv"
  pip=("$root.venv/bin/python" -m pip)
  pip_install "$tar.log" --no-deps --target "$root/usr/local/lib/python3.11/dist-packages" --python-version 3.11 --implementation cp \
    --platform "manylinux2014_$(uname -m)" --only-binary=:all: -r "$here/requirements/ipykernel.txt"
  mkdir -p "$root/usr/local/share/jupyter/kernels/python3"
  echo '{"argv": ["/usr/bin/python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}' \
    > "$root/usr/local/share/jupyter/kernels/python3/kernel.json"
  cp "$("$repo/scripts/kernel-image.sh" python)" "$tar.tmp"
  # no entry twice: Docker takes no such layer
  tar -C "$root" --numeric-owner --owner=0 --group=0 --no-recursion -rf "$tar.tmp" \
    --files-from <(cd "$root" && find usr/local/lib/python3.11/dist-packages usr/local/share -mindepth 1)
  rm -rf "$root" "$root.venv"
  mv "$tar.tmp" "$tar"
}

# once NAME INPUT...: the tar that the function NAME makes of some files.
once() {
  local name=$1 tar
  shift
  tar=$cache/real-stack/$name-$(key "$@" "$here/images-of-2019.sh").tar
  locked "real-stack-$name" "$name" "$tar"
  echo "$tar"
}

mkdir -p "$cache/real-stack"
once krunner_env "$here/requirements/krunner.txt"
once kernel_image "$here/requirements/ipykernel.txt" "$repo/images/python/recipe.sh"
