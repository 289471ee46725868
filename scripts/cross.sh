#!/bin/bash
# make cross-arm64: builds the agent, with the runner and the monitor in it, for arm64 on a machine of another kind, and looks at
# what came out; it is not run. Needs rustup, which fetches the target's standard library.
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/build-deps.sh
. "$repo/scripts/build-deps.sh"
target=aarch64-unknown-linux-gnu debian=arm64 triple=aarch64-linux-gnu
cd "$repo"
need_build
command -v rustup > /dev/null || die "no rustup: it fetches the standard library of $target (https://rustup.rs)"
rustup target add --toolchain "$(rustup show active-toolchain | cut -d' ' -f1)" "$target"
need_apt "gcc-$triple" "libc6-dev-$debian-cross"

# libseccomp of the other architecture, in a folder of its own: the machine's packages stay as they are.
sysroot=$cache/cross/$debian
fetch_libseccomp() {
  [ ! -e "$sysroot/done" ] || return 0
  local apt=(-o APT::Architectures="$(dpkg --print-architecture),$debian" -o APT::Architecture="$debian"
    -o Dir::State::lists="$sysroot/lists" -o Dir::State::status="$sysroot/status" -o Dir::Cache="$sysroot/cache"
    -o APT::Sandbox::User=root -o Debug::NoLocking=1)
  rm -rf "$sysroot"
  mkdir -p "$sysroot"/{lists/partial,cache/archives/partial,debs}
  touch "$sysroot/status"
  apt-get -qq "${apt[@]}" update
  (cd "$sysroot/debs" && apt-get -qq "${apt[@]}" download libseccomp-dev libseccomp2)
  for deb in "$sysroot"/debs/*.deb; do dpkg-deb -x "$deb" "$sysroot"; done
  rm -rf "$sysroot"/{lists,cache,debs,status}
  touch "$sysroot/done"
}
say "fetching libseccomp for $debian (once)"
locked "cross-$debian" fetch_libseccomp

say "building for $target"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$triple-gcc CC_aarch64_unknown_linux_gnu=$triple-gcc
export LIBSECCOMP_LIB_PATH=$sysroot/usr/lib/$triple
cargo build --target "$target" "$@"
agent=$repo/target/$target/debug/backendai-agent
file=$(LC_ALL=C "$triple-readelf" -h "$agent" | sed -n 's/^ *Machine: *//p')
[ "$file" = AArch64 ] || die "$agent is for $file"
say "built $agent ($file)"
