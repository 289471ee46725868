#!/bin/bash
# machine-for-a-user.sh FOLDER AGENT COMMAND...: runs a command in the mount namespace that it is called in, after making there what an
# ordinary user's agent wants: a user with numbers for a user namespace, and a cgroup that is the user's. FOLDER/agent is the program that
# runs AGENT as that user, on the folders that its options name.
set -euo pipefail
folder=$1 agent=$2
shift 2
user=20001 group=bai-user-${folder##*.}
chmod 755 "$folder"
for file in passwd subuid subgid; do
  cp "/etc/$file" "$folder/$file"
  case $file in
    passwd) echo "ordinary:x:$user:$user::$folder/home:/bin/sh";;
    *) echo "ordinary:300000:65536";;
  esac >> "$folder/$file"
  mount --bind "$folder/$file" "/etc/$file"
done
install -d -o "$user" -g "$user" "$folder/home" "$folder/run"
install -m 755 "$agent" "$folder/program"

# The same path in every hierarchy, and on version 2 the only one.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  groups=("/sys/fs/cgroup/$group")
  for controller in cpu cpuset memory pids; do echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control || true; done
else
  groups=()
  for hierarchy in blkio cpu cpuacct cpuset devices freezer memory pids; do
    [ ! -d "/sys/fs/cgroup/$hierarchy" ] || groups+=("/sys/fs/cgroup/$hierarchy/$group")
  done
fi
# The kernel removes a cgroup a moment after its last process.
remove_groups() {
  for _ in 1 2 3 4 5; do
    find "${groups[@]}" -depth -type d -exec rmdir {} + 2> /dev/null || true
    [ -n "$(find "${groups[@]}" -maxdepth 0 2> /dev/null)" ] || return 0
    sleep 1
  done
}
trap remove_groups EXIT
for path in "${groups[@]}"; do
  mkdir "$path"
  for file in cpuset.cpus cpuset.mems; do
    if [ -e "$path/$file" ] && [ -e "${path%/*}/$file" ]; then cat "${path%/*}/$file" > "$path/$file"; fi
  done
  chown -R "$user:$user" "$path"
done

cat > "$folder/agent" << END
#!/bin/bash
option=
for word in "\$@"; do
  case \$option in
    --state-dir|--run-dir|--scratch-root) chown -R $user:$user "\$word"; chmod o+x "\${word%/*}";;
  esac
  option=\$word
done
for path in ${groups[*]}; do echo \$\$ > "\$path/cgroup.procs"; done
exec setpriv --reuid $user --regid $user --clear-groups env HOME=$folder/home XDG_RUNTIME_DIR=$folder/run $folder/program "\$@"
END
chmod 755 "$folder/agent"
"$@"
