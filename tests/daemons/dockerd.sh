#!/bin/bash
# dockerd.sh FOLDER [OPTION...]: becomes a dockerd of its own, with everything it keeps below FOLDER; FOLDER/docker.sock is its
# socket. Run it in a network namespace of its own: it writes iptables rules and makes the bridge docker0.
# After its end, sweep.sh FOLDER removes everything.
set -euo pipefail
folder=$1
shift
mkdir -p "$folder"
# A file of settings of its own, so that the machine's is not read.
echo '{}' > "$folder/daemon.json"
exec dockerd --config-file "$folder/daemon.json" --data-root "$folder/data" --exec-root "$folder/exec" \
  --pidfile "$folder/dockerd.pid" --host "unix://$folder/docker.sock" --oom-score-adjust 0 --group root \
  --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/backendai-test/${folder##*/}" --shutdown-timeout 3 "$@"
