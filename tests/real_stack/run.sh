#!/bin/bash
# run.sh [--runtime youki|docker|containerd] [CASE...]: the agent (BACKENDAI_AGENT_BIN, else target/debug/backendai-agent) on an engine
# under the real 19.03.3 manager. Prints `ok ENGINE.CASE`, `FAILED ENGINE.CASE` or `skipped NAME: what is missing` for each case.
# run.sh --adoption [CASE...]: the agent and the Python agent 19.03.3 take over each other's kernels, on Docker.
# run.sh --rootless [CASE...]: the same as for youki, with an agent that an ordinary user runs.
# run.sh --all: all of these, one after the other.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

if [ "${1:-}" = --all ]; then
  status=0
  for suite in "--runtime youki" "--runtime docker" "--runtime containerd" --rootless --adoption; do
    # shellcheck disable=SC2086
    "$0" $suite || status=1
  done
  exit "$status"
fi
runtime=youki suite=youki venv_names=(manager client)
case ${1:-} in
  --runtime) runtime=${2:?--runtime wants an engine} suite=$2; shift 2;;
  --rootless) suite=rootless; shift;;
  --adoption) runtime=docker suite=adoption venv_names+=(agent); shift;;
esac
agent=${BACKENDAI_AGENT_BIN:-$repo/target/debug/backendai-agent}
[ -x "$agent" ] || die "no agent at $agent: run 'cargo build' first"

need_apt iproute2 nftables redis-tools
need_services etcd-server redis-server postgresql docker-registry
[ "$suite" != rootless ] || need_apt uidmap passt
case $runtime in
  docker) need_services docker.io; need_apt iptables;;
  containerd) need_services containerd; need_apt runc;;
esac
status=0
venvs=$("$here/venvs.sh" "${venv_names[@]}") || status=$?
if [ "$status" = 77 ]; then echo "skipped real_stack.$suite: needs $venvs"; exit 0; fi
[ "$status" = 0 ] || exit "$status"
read -r manager client agent_venv <<< "${venvs//$'\n'/ }"

python_tar=$("$repo/scripts/kernel-image.sh" python) busybox_tar=$("$repo/scripts/kernel-image.sh" busybox)
command=() more=() spaces=(--net)
work=$(mktemp -d "${TMPDIR:-/tmp}/bai-machine.XXXXXX")
trap 'as_root rm -rf --one-file-system "$work"' EXIT
if [ "$suite" = adoption ]; then
  tars=$("$here/images-of-2019.sh")
  python_tar=$(sed -n 2p <<< "$tars") more=(--agent-venv "$agent_venv" --krunner-tar "$(sed -n 1p <<< "$tars")")
  command=("$here/machine-of-2019.sh" "$work") spaces+=(--mount)
fi
if [ "$suite" = rootless ]; then
  command=("$here/machine-for-a-user.sh" "$work" "$agent") spaces+=(--mount)
  agent=$work/agent more=(--suite rootless)
fi
command+=("$client/bin/python" "$here/scenario.py" --manager-venv "$manager" --agent "$agent" --runtime "$runtime"
  --python-tar "$python_tar" --busybox-tar "$busybox_tar" --logs "$logs/real-stack-$suite" "${more[@]}")

# In a network namespace of its own: what the agent leaves there is its own, whatever else runs on the machine.
as_root unshare "${spaces[@]}" sh -c 'ip link set lo up && exec "$@"' sh \
  env PATH="$PATH" PYTHONDONTWRITEBYTECODE=1 "${command[@]}" "$@"
