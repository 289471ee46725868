#!/bin/bash
# debian.sh SUITE: makes a folder of the engines as a suite of Debian has them (trixie, sid), once, in the cache; prints its path.
# Half a minute; root. A suite that moves is taken anew when the folder is removed (`make clean-cache`).
# debian.sh --hold SUITE: holds a mount namespace where the suite's /usr is in place of the machine's, until its standard input ends;
# prints a line when it stands. What the machine mounts later is seen there too.
# Exit status 3: there is no such folder and it cannot be made, which is what the caller lacks.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=containerd,runc,crun,docker.io,docker-cli,iptables,nftables,kmod,mount,util-linux

# The mirror that this machine's apt has Debian from; none leaves the choice to mmdebstrap.
mirror() {
  [ -z "${BACKENDAI_DEBIAN_MIRROR:-}" ] || { echo "$BACKENDAI_DEBIAN_MIRROR"; return; }
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2> /dev/null | sed -n 1p
}

# The packages are only unpacked: no script of theirs runs, and nothing of them is started. A mirror that stands still serves as well:
# what it has must be signed, not new.
build() {
  local folder=$1 suite=$2 from program
  [ ! -e "$folder/complete" ] || return 0
  as_root rm -rf "$folder"
  from=$(mirror)
  as_root mmdebstrap --quiet --mode=root --format=directory --variant=extract --keyring="$keyring" --include="$packages" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$folder" ${from:+"$from"} || return
  # What the packages' scripts would choose, and both places where programs of other suites are.
  for program in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    as_root ln -sf "${program/tables/tables-nft}" "$folder/usr/sbin/$program" || return
  done
  for program in runc crun; do
    [ -e "$folder/usr/bin/$program" ] || as_root ln -s "../sbin/$program" "$folder/usr/bin/$program" || return
    [ -e "$folder/usr/sbin/$program" ] || as_root ln -s "../bin/$program" "$folder/usr/sbin/$program" || return
  done
  as_root touch "$folder/complete"
}

mode=path
if [ "${1:-}" = --hold ]; then mode=hold; shift; fi
suite=${1:?debian.sh: which suite of Debian}
[[ $suite =~ ^[a-z]+$ ]] || die "no name of a suite of Debian: $suite"
folder=$cache/debian/$suite-$(key "${BASH_SOURCE[0]}")
if [ ! -e "$folder/complete" ]; then
  need_apt mmdebstrap debian-archive-keyring > /dev/null
  mkdir -p "$cache/debian"
  say "unpacking the engines of Debian $suite (once)"
  if ! locked "debian-$suite" build "$folder" "$suite" > "$cache/debian/$suite.log" 2>&1; then
    tail -5 "$cache/debian/$suite.log" >&2
    echo "error: the engines of Debian $suite cannot be had (log: $cache/debian/$suite.log)" >&2
    exit 3
  fi
fi
case $mode in
  path) echo "$folder";;
  # shellcheck disable=SC2016
  hold) exec unshare --mount --propagation slave sh -ec 'mount --rbind "$1/usr" /usr; echo held; read -r _ || true' sh "$folder";;
esac
