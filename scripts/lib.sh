# Sourced by every script of the repository: where things are kept, how they are named, how missing packages are installed.
# shellcheck shell=bash
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything that outlives a run is here, in folders named after what made it. It may be removed at any time.
cache=${BACKENDAI_CACHE:-$HOME/.cache/backendai-agent}
logs=$repo/target/test-logs
export LC_ALL=C.UTF-8
mkdir -p "$cache"

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# as_root COMMAND...: runs it as root, through sudo where needed.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo > /dev/null; then sudo "$@"
  else die "this step needs root: run it as root or install sudo (wanted: $*)"; fi
}

# key FILE...: a short name for the content of some files, which changes when any of them does.
key() { cat -- "$@" | sha256sum | cut -c1-12; }

# locked NAME COMMAND...: one run at a time for each name, also across checkouts of the repository.
locked() {
  local _lock=$cache/.$1.lock; shift
  ( flock 9; "$@" ) 9> "$_lock"
}

# apt_missing PACKAGE...: prints those that are not installed.
apt_missing() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || printf '%s ' "$package"
  done
}

# need_apt PACKAGE...: installs what is missing. No service of a package is started: the tests start their own, on ports of
# their own, and a service of Debian's would take the default ports.
need_apt() {
  local missing
  missing=$(apt_missing "$@")
  [ -n "$missing" ] || return 0
  command -v apt-get > /dev/null || die "not a Debian system; please install the equivalents of: $missing"
  say "installing with apt: $missing"
  # shellcheck disable=SC2086
  locked apt _apt_install $missing
}
_apt_install() {
  local policy=/usr/sbin/policy-rc.d mine= status=0
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" > /dev/null
    as_root chmod 755 "$policy"
    mine=1
  fi
  { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
      apt-get install -y -qq --no-install-recommends "$@"; } > "$cache/apt.log" 2>&1 || status=$?
  [ -z "$mine" ] || as_root rm -f "$policy"
  if [ "$status" != 0 ]; then tail -20 "$cache/apt.log" >&2; die "apt could not install: $* (log: $cache/apt.log)"; fi
}

# need_services PACKAGE...: like need_apt, for packages that bring services. Those that are installed here do not start at the
# next boot either; the tests run their programs themselves.
need_services() {
  local missing package
  missing=$(apt_missing "$@")
  need_apt "$@"
  [ -d /run/systemd/system ] || return 0
  for package in $missing; do
    as_root systemctl disable --quiet "${package%-server}.service" "$package.service" 2> /dev/null || true
  done
}
