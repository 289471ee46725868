#!/bin/bash
# lane.sh docker|containerd COMMAND...: runs a command, as root, in a network namespace of its own beside a running daemon, which
# BACKENDAI_TEST_DOCKER (unix://...) or BACKENDAI_TEST_CONTAINERD (a path) names to it. Everything is removed after it.
# BACKENDAI_TEST_DEBIAN (trixie, sid) takes that suite's daemons, not the machine's: those that the command starts too are in the mount
# namespace of the process BACKENDAI_TEST_USR.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${BACKENDAI_LANE:-}" ]; then
  if [ -n "${BACKENDAI_TEST_DEBIAN:-}" ]; then
    # While there is a way to the mirror.
    "$here/debian.sh" "$BACKENDAI_TEST_DEBIAN" > /dev/null
    # Daemons must see in their mount namespace what the agent mounts for a container.
    mounts=(--mount --propagation shared)
  fi
  exec unshare --net ${mounts[@]+"${mounts[@]}"} env BACKENDAI_LANE=1 "$0" "$@"
fi
unset BACKENDAI_LANE
ip link set lo up
if [ -n "${BACKENDAI_TEST_DEBIAN:-}" ]; then
  coproc usr { exec "$here/debian.sh" --hold "$BACKENDAI_TEST_DEBIAN"; }
  export BACKENDAI_TEST_USR=$usr_PID
  read -r _ <&"${usr[0]}"
fi
engine=$1
shift
folder=$(mktemp -d "${TMPDIR:-/tmp}/bai-$engine.XXXXXX")
case $engine in
  docker) start=dockerd.sh socket=$folder/docker.sock; export BACKENDAI_TEST_DOCKER=unix://$socket;;
  containerd) start=containerd.sh socket=$folder/containerd.sock; export BACKENDAI_TEST_CONTAINERD=$socket;;
  *) echo "error: no daemon of $engine" >&2; exit 1;;
esac
"$here/$start" "$folder" > "$folder.log" 2>&1 &
daemon=$!
# A stop in peace waits for every container; the sweep does not.
end() {
  kill -9 "$daemon" 2> /dev/null || true
  wait "$daemon" 2> /dev/null || true
  "$here/sweep.sh" "$folder"
  rm -f "$folder.log"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for _ in $(seq 300); do
  [ -S "$socket" ] && break
  kill -0 "$daemon" 2> /dev/null || { tail -20 "$folder.log" >&2; echo "error: the daemon of $engine ended" >&2; exit 1; }
  sleep 0.1
done
"$@"
