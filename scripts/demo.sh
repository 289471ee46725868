#!/bin/bash
# make demo [RUNTIME=youki|docker|containerd]: from nothing to Python code running in a container, on one machine, with no manager.
# Where the engine has a daemon and none answers, one is started on a folder of its own for as long as this takes.
# BACKEND_RUNTIME_ENDPOINT names a daemon's socket, BACKENDAI_AGENT_BIN a program that is built already.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/build-deps.sh
. "$repo/scripts/build-deps.sh"
cd "$repo"
inside=
if [ "${1:-}" = --inside ]; then inside=1; shift; fi
runtime=${1:-youki}
case $runtime in youki | docker | containerd) ;; *) die "RUNTIME=$runtime: there are youki, docker and containerd";; esac
export BACKENDAI_CACHE=$cache

# answers: whether the machine's own daemon of the engine can be used.
answers() {
  case $runtime in
    docker) as_root timeout 10 docker ${BACKEND_RUNTIME_ENDPOINT:+--host "$BACKEND_RUNTIME_ENDPOINT"} version;;
    containerd) as_root timeout 10 ctr --address "${BACKEND_RUNTIME_ENDPOINT:-/run/containerd/containerd.sock}" version;;
  esac > /dev/null 2>&1
}

# start_engine: installs the engine, and goes on beside a daemon of its own unless the machine's answers.
start_engine() {
  case $runtime in
    docker) need_services docker.io;;
    containerd) need_services containerd; need_apt runc;;
    youki) return 0;;
  esac
  answers && { say "using the machine's $runtime"; return 0; }
  [ -z "${BACKEND_RUNTIME_ENDPOINT:-}" ] || die "no $runtime answers at $BACKEND_RUNTIME_ENDPOINT"
  say "starting $runtime on a folder of its own, in a network namespace of its own"
  as_root env BACKENDAI_CACHE="$cache" BACKENDAI_AGENT_BIN="$agent" "$repo/tests/daemons/lane.sh" "$runtime" "$repo/scripts/demo.sh" --inside "$runtime"
  exit
}

agent=${BACKENDAI_AGENT_BIN:-$repo/target/release/backendai-agent}
[ -n "$inside" ] || need_runtime
if [ -z "$inside${BACKENDAI_AGENT_BIN:-}" ]; then
  need_build
  say "building the agent: the first time takes some minutes"
  quiet=yes
  [ ! -t 2 ] || quiet=  # a person sees how far it is
  cargo build --release ${quiet:+--quiet}
fi
tar=$(scripts/kernel-image.sh python)
name=$(scripts/kernel-image.sh --ref python)
mapfile -t flags < <(scripts/kernel-image.sh --flags python)
[ -n "$inside" ] || start_engine

engine=(--runtime "$runtime")
case $runtime in
  docker) endpoint=${BACKENDAI_TEST_DOCKER:-${BACKEND_RUNTIME_ENDPOINT:-}};;
  containerd) endpoint=${BACKENDAI_TEST_CONTAINERD:-${BACKEND_RUNTIME_ENDPOINT:-}};;
  youki) endpoint=;;
esac
[ -z "$endpoint" ] || engine+=(--runtime-endpoint "$endpoint")
state=$cache/demo
work=$(mktemp -d)
trap 'as_root rm -rf "$work"' EXIT
folders=(--state-dir "$state" --run-dir "$work/run")
say "importing the image $name"
as_root "$agent" image import "${engine[@]}" "${folders[@]}" "$tar" "$name" "${flags[@]}"

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
  as_root "$agent" run "${folders[@]}" "${engine[@]}" --image "$name" -c "$code" || status=$?
  echo "$status" > "$work/status")
status=$(cat "$work/status")
[ "$status" = 0 ] || die "the run failed with status $status"
[ -n "$first" ] || die "the code gave no output"
awk -v a="$begin" -v b="$first" 'BEGIN { printf "==> from request to first output: %.0f ms\n", (b - a) * 1000 }' >&2
