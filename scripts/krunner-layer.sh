#!/bin/bash
# make krunner-layer [OUT=FOLDER]: the runner inside kernels as an OCI image layout of one image with one layer. Prints the digest of
# its manifest, which is the same for the same sources, whatever folder they are in.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/build-deps.sh
. "$repo/scripts/build-deps.sh"
out=$(realpath -m "${1:-$repo/target/krunner-image}")
cd "$repo"
need_build
say "building"
cargo build --quiet
[ -n "${1:-}" ] || rm -rf "$out"
target/debug/backendai-agent krunner export "$out"
say "written to $out; to a registry: backendai-agent image push $out REGISTRY/REPOSITORY:TAG"
