#!/bin/bash
# run.sh [--runtime youki|docker|containerd] [CASE...]: the agent (BACKENDAI_AGENT_BIN, else target/debug/backendai-agent) on an engine
# under the real 19.03.3 manager. Prints `ok ENGINE.CASE`, `FAILED ENGINE.CASE` or `skipped NAME: what is missing` for each case.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

runtime=youki
if [ "${1:-}" = --runtime ]; then runtime=${2:?--runtime wants an engine}; shift 2; fi
agent=${BACKENDAI_AGENT_BIN:-$repo/target/debug/backendai-agent}
[ -x "$agent" ] || die "no agent at $agent: run 'cargo build' first"

need_apt iproute2 nftables redis-tools
need_services etcd-server redis-server postgresql docker-registry
case $runtime in
  docker) need_services docker.io; need_apt iptables;;
  containerd) need_services containerd; need_apt runc;;
esac
status=0
venvs=$("$here/venvs.sh") || status=$?
if [ "$status" = 77 ]; then echo "skipped real_stack.$runtime: needs $venvs"; exit 0; fi
[ "$status" = 0 ] || exit "$status"
manager=$(sed -n 1p <<< "$venvs") client=$(sed -n 2p <<< "$venvs")

# In a network namespace of its own: what the agent leaves there is its own, whatever else runs on the machine.
as_root unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
  env PATH="$PATH" PYTHONDONTWRITEBYTECODE=1 "$client/bin/python" "$here/scenario.py" --manager-venv "$manager" \
  --agent "$agent" --python-tar "$("$repo/scripts/kernel-image.sh" python)" --busybox-tar "$("$repo/scripts/kernel-image.sh" busybox)" \
  --logs "$logs/real-stack-$runtime" --runtime "$runtime" "$@"
