#!/bin/bash
# dockerd.sh FOLDER [OPTION...]: becomes a dockerd of its own, with everything it keeps below FOLDER; FOLDER/docker.sock is its
# socket. Run it in a network namespace of its own: it writes iptables rules and makes the bridge docker0.
# After its end, sweep.sh FOLDER removes everything. BACKENDAI_TEST_USR (see lane.sh) has it in another mount namespace;
# BACKENDAI_TEST_DOCKER_STORE=containerd has it keep images in containerd's store (Docker 25 or later).
set -euo pipefail
folder=$1
shift
mkdir -p "$folder"
# A file of settings of its own, so that the machine's is not read.
store=false
[ "${BACKENDAI_TEST_DOCKER_STORE:-}" != containerd ] || store=true
echo "{\"features\": {\"containerd-snapshotter\": $store}}" > "$folder/daemon.json"
dockerd=(${BACKENDAI_TEST_USR:+nsenter --mount="/proc/$BACKENDAI_TEST_USR/ns/mnt"} dockerd)
# Docker before 24 wants to be hard to kill, which not every root may ask for; later ones have no such option.
help=$("${dockerd[@]}" --help)
case $help in *--oom-score-adjust*) set -- --oom-score-adjust 0 "$@";; esac
exec "${dockerd[@]}" --config-file "$folder/daemon.json" --data-root "$folder/data" --exec-root "$folder/exec" \
  --pidfile "$folder/dockerd.pid" --host "unix://$folder/docker.sock" --group root \
  --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/backendai-test/${folder##*/}" --shutdown-timeout 3 "$@"
