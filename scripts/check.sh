#!/bin/bash
# make check: formatting, lints, documentation, dependencies, unit tests. No services, no containers.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/build-deps.sh
. "$repo/scripts/build-deps.sh"
cd "$repo"
need_build

step() { local name=$1; shift; say "check: $name"; "$@" || die "check failed: $name"; }

unit_tests() {
  if need_cargo_tool cargo-nextest "$nextest_version"; then
    cargo nextest run --workspace --lib --bins --no-fail-fast --status-level fail --hide-progress-bar
  else
    cargo test --workspace --lib --bins --no-fail-fast --quiet
  fi
}

step formatting cargo fmt --all --check
step lints cargo clippy --quiet --workspace --all-targets -- -D warnings
# Each engine is built alone too, as README says.
for engine in youki containerd docker; do
  step "lints, $engine alone" cargo clippy --quiet --package backendai-agent --lib --bins --no-default-features --features "$engine" -- -D warnings
done
step documentation env RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --quiet --workspace --no-deps --document-private-items
if need_cargo_tool cargo-deny "$deny_version"; then
  step dependencies cargo deny --log-level error check bans licenses sources
else
  die "cargo-deny $deny_version could not be installed"
fi
step "unit tests" unit_tests
say "check: all passed"
