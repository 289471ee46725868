# Sourced after lib.sh: what building and testing need.
# shellcheck shell=bash

# The compiler, and the packages that dependencies' build scripts want: protoc (etcd's protocol), libseccomp (libcontainer).
need_build() {
  command -v cargo > /dev/null || PATH=$HOME/.cargo/bin:$PATH
  command -v cargo > /dev/null || die "no cargo: install the Rust toolchain with rustup (https://rustup.rs)"
  need_apt gcc libc6-dev pkg-config protobuf-compiler libprotobuf-dev libseccomp-dev
}

# What the engines' programs and the tests of them use at run time.
need_runtime() { need_apt nftables iproute2; }

# need_cargo_tool NAME VERSION [OPTION...]: puts the tool into PATH; installs it into the cache when it is missing. Built without
# optimization, which takes a third of the time. Returns 1 when it cannot be had.
need_cargo_tool() {
  local name=$1 version=$2 folder=$cache/tools/$1-$2
  shift 2
  PATH=$folder/bin:$PATH
  command -v "$name" > /dev/null && return
  say "installing $name $version with cargo (once; minutes)"
  mkdir -p "$folder"
  locked "tool-$name" env CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$folder/target" nice -n 10 \
    cargo install --quiet --debug --locked --root "$folder" --version "$version" "$@" "$name" > "$folder/install.log" 2>&1 ||
    { tail -5 "$folder/install.log" >&2; return 1; }
  rm -rf "$folder/target"
}

# Versions of the tools: the newest that the toolchain of this repository builds.
nextest_version=0.9.143
deny_version=0.20.2
# A handler below containerd, of the version that the agent has as a library.
youki_version=0.7.0
