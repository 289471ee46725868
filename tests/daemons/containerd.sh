#!/bin/bash
# containerd.sh FOLDER [NAME=SOCKET...]: becomes a containerd of its own, with everything it keeps below FOLDER; FOLDER/containerd.sock
# is its socket, and programs that serve at a SOCKET are its snapshotters NAME. After its end, sweep.sh FOLDER removes everything.
# BACKENDAI_TEST_USR (see lane.sh) has it in another mount namespace.
set -euo pipefail
folder=$1
mkdir -p "$folder"
cat > "$folder/config.toml" << CONFIG
version = 2
root = "$folder/root"
state = "$folder/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "$folder/containerd.sock"
[ttrpc]
  address = "$folder/containerd.sock.ttrpc"
CONFIG
for snapshotter in "${@:2}"; do
  cat >> "$folder/config.toml" << CONFIG
[proxy_plugins."${snapshotter%%=*}"]
  type = "snapshot"
  address = "${snapshotter#*=}"
CONFIG
done
exec ${BACKENDAI_TEST_USR:+nsenter --mount="/proc/$BACKENDAI_TEST_USR/ns/mnt"} containerd --config "$folder/config.toml"
