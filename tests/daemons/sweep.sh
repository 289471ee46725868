#!/bin/bash
# sweep.sh FOLDER: removes what a stopped daemon of dockerd.sh or containerd.sh left: containers that outlived it with their
# cgroups, mounts, sockets of shims, files.
set -uo pipefail
folder=$1
case $folder in /*/*) ;; *) echo "error: no folder of a daemon: $folder" >&2; exit 1;; esac

groups=()
# remember PID: notes the cgroups of a process.
remember() {
  local hierarchy path
  while IFS=: read -r _ hierarchy path; do
    [ "$path" = / ] || groups+=("${hierarchy#name=}:$path")
  done < "/proc/$1/cgroup"
}
# Shims that serve this daemon, the first processes of their containers, and dockerd's own containerd.
for process in /proc/[0-9]*; do
  { tr '\0' ' ' < "$process/cmdline"; } 2> /dev/null | grep -qE "shim.* -address $folder/|^containerd --config $folder/" || continue
  for child in $(cat "$process"/task/*/children 2> /dev/null); do
    remember "$child"
    kill -9 "$child" 2> /dev/null
  done
  kill -9 "${process#/proc/}" 2> /dev/null
done
# Shims keep their sockets outside.
find "$folder" -name address -type f -exec sed 's,^unix://,,;s/$/\n/' {} + 2> /dev/null | grep . | xargs -r rm -f
# rmdir waits for the processes that are ending.
remove_groups() {
  local entry root left=0
  for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -d "$root/backendai-test" ] || continue
    find "$root/backendai-test/${folder##*/}" -depth -type d -exec rmdir {} \; 2> /dev/null
    [ ! -d "$root/backendai-test/${folder##*/}" ] || left=1
    rmdir "$root/backendai-test" 2> /dev/null
  done
  for entry in ${groups[@]+"${groups[@]}"}; do
    root=/sys/fs/cgroup/${entry%%:*}
    [ "${entry%%:*}" != "" ] && [ -d "$root" ] || root=/sys/fs/cgroup
    rmdir "$root${entry#*:}" 2> /dev/null
    [ ! -d "$root${entry#*:}" ] || left=1
  done
  return $left
}
for _ in $(seq 50); do
  remove_groups && break
  sleep 0.1
done
awk -v folder="$folder/" 'index($5, folder) == 1 { print $5 }' /proc/self/mountinfo | tac | while read -r mount; do
  umount -l "$mount"
done
rm -rf "$folder"
