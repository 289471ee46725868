#!/bin/bash
# The lane of `make test` that needs a pure cgroup v2: packs the agent, a kernel image and ./cases onto a disk and runs them in
# a virtual machine. Prints `ok NAME`, `FAILED NAME` or `skipped NAME: what is missing`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
if [ "$(uname -m)" != x86_64 ]; then echo "skipped vm: needs an x86-64 machine"; exit 0; fi
agent=${BACKENDAI_AGENT_BIN:-$repo/target/debug/backendai-agent}
[ -x "$agent" ] || die "no agent at $agent: run 'cargo build' first"
need_apt qemu-system-x86 e2fsprogs binutils jq

payload=$(mktemp -d "${TMPDIR:-/var/tmp}/bai-payload.XXXXXX")
trap 'rm -rf "$payload"' EXIT
strip -o "$payload/backendai-agent" "$agent"
cp "$("$repo/scripts/kernel-image.sh" busybox)" "$payload/busybox.tar"
"$repo/scripts/kernel-image.sh" --flags busybox > "$payload/busybox.flags"
"$repo/scripts/kernel-image.sh" --ref busybox > "$payload/busybox.ref"
mkdir -p "$logs"
cp "$here/cases" "$payload/cases"
echo "$agent" > "$payload/agent.path"

# The Rust tests that ./rust-tests names, as they were built for the rust lane.
cargo test --quiet --no-run --package backendai-agent --lib --tests --message-format json 2> "$logs/vm-build.log" |
  jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null
                and (.target.kind[0] | . == "lib" or . == "test"))
         | "\(if .target.kind[0] == "test" then .target.name else "lib" end) \(.executable)"' > "$payload/built" ||
  { tail -20 "$logs/vm-build.log" >&2; die "the Rust tests for the virtual machine do not build"; }
grep -vE '^ *(#|$)' "$here/rust-tests" | while read -r name filter; do
  executable=$(awk -v name="$name" '$1 == name { print $2 }' "$payload/built")
  if [ -z "$executable" ]; then echo "FAILED rust-tests names $name, which is not built"; continue; fi
  [ -e "$payload/test-$name" ] || strip -o "$payload/test-$name" "$executable"
  echo "$name $filter" >> "$payload/rust-tests"
done
status=0
as_root env HOME="$HOME" "$here/boot.sh" "$payload" "$logs/vm-console.log" || status=$?
# Once more, for what only systemd does.
as_root env HOME="$HOME" VM_SYSTEMD=1 "$here/boot.sh" "$payload" "$logs/vm-console-systemd.log" || status=$?
exit $status
