#!/bin/bash
# machine-of-2019.sh FOLDER COMMAND...: runs a command in the mount namespace that it is called in, after making there what the Python
# agent of 2019 wants: version 1 control groups with net_cls, and a /tmp/backend.ai of its own. Prints a line of a skipped case when they are not to be had.
set -euo pipefail
folder=$1
shift
groups=/sys/fs/cgroup
for controller in memory cpuacct blkio; do
  [ -d "$groups/$controller" ] || { echo "skipped adoption: needs version 1 control groups ($controller)"; exit; }
done
mkdir -p "$folder/groups" "$folder/ipc" /tmp/backend.ai
if [ ! -d "$groups/net_cls" ]; then
  mount -t tmpfs -o mode=755 groups "$folder/groups"
  for controller in "$groups"/*; do
    mkdir "$folder/groups/${controller##*/}"
    mount --bind "$controller" "$folder/groups/${controller##*/}"
  done
  mkdir "$folder/groups/net_cls"
  mount -t cgroup -o net_cls groups "$folder/groups/net_cls" 2> /dev/null || { echo "skipped adoption: needs the control group net_cls"; exit; }
  mount --move "$folder/groups" "$groups"
  # A group that stays keeps the whole hierarchy alive, and containerd cannot watch the memory of any container on a machine
  # that has a hierarchy which is not mounted where it looks.
  remove_groups() {
    find "$groups/net_cls" -mindepth 1 -depth -type d -exec rmdir {} + 2> /dev/null || true
    # Linux forgets them a moment later; unmounted before that, the hierarchy would stay.
    sleep 1
  }
  trap remove_groups EXIT
fi
mount --bind "$folder/ipc" /tmp/backend.ai
status=0
"$@" || status=$?
exit $status
