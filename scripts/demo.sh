#!/bin/bash
# make demo: from nothing to Python code running in a container, on one machine, with no daemon and no manager.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/build-deps.sh
. "$repo/scripts/build-deps.sh"
cd "$repo"
runtime=${1:-youki}
need_build
need_runtime
say "building the agent"
cargo build --release --quiet
agent=$repo/target/release/backendai-agent
tar=$(scripts/kernel-image.sh python)
name=$(scripts/kernel-image.sh --ref python)
mapfile -t flags < <(scripts/kernel-image.sh --flags python)

state=$cache/demo
work=$(mktemp -d)
trap 'as_root rm -rf "$work"' EXIT
folders=(--state-dir "$state" --run-dir "$work/run")
say "importing the image $name"
as_root "$agent" image import "${folders[@]}" "$tar" "$name" "${flags[@]}"

read -r -d '' code << 'PYTHON' || true
import os, platform, sys
print("hello from Python", platform.python_version(), "in a container")
print("I am process", os.getpid(), "and user", os.getuid(), "and see", len([p for p in os.listdir("/proc") if p.isdigit()]), "processes")
print("sum of squares:", sum(n * n for n in range(10)))
PYTHON
say "backendai-agent run --runtime $runtime --image $name -c CODE"
first=
begin=$EPOCHREALTIME
while IFS= read -r line; do
  [ -n "$first" ] || first=$EPOCHREALTIME
  printf '%s\n' "$line"
done < <(status=0
  as_root "$agent" run "${folders[@]}" --runtime "$runtime" --image "$name" -c "$code" || status=$?
  echo "$status" > "$work/status")
status=$(cat "$work/status")
[ "$status" = 0 ] || die "the run failed with status $status"
[ -n "$first" ] || die "the code gave no output"
awk -v a="$begin" -v b="$first" 'BEGIN { printf "==> from request to first output: %.0f ms\n", (b - a) * 1000 }' >&2
