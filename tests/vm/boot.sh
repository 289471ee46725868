#!/bin/bash
# boot.sh PAYLOAD LOG: boots the guest with a copy of the folder PAYLOAD on its second disk, where it runs PAYLOAD/cases;
# prints what that printed and exits with its status. 124: it took longer than $VM_SECONDS (1800). 125: the guest did not come up;
# its console is in LOG. $VM_SYSTEMD: systemd is the guest's process 1. qemu emulates the processor: the guest is about twenty times
# slower than the machine.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
payload=$1 log=$2
image=$("$here/image.sh")
work=$(mktemp -d "${TMPDIR:-/var/tmp}/bai-vm.XXXXXX")
qemu=
stop() { [ -z "$qemu" ] || kill "$qemu" 2> /dev/null || true; rm -rf "$work"; }
trap stop EXIT
truncate -s $(( $(du -sm "$payload" | cut -f1) * 12 / 10 + 64 ))M "$work/payload.ext4"
mke2fs -q -t ext4 -O ^has_journal -d "$payload" "$work/payload.ext4"
mkfifo "$work/out"
timeout -k 5 "${VM_SECONDS:-1800}" qemu-system-x86_64 -machine q35,usb=off,vmport=off -cpu max,la57=off -smp 2 -m 2048 -accel tcg,thread=multi \
  -nodefaults -no-user-config -no-reboot -display none -serial "file:$log" \
  -chardev file,id=out,path="$work/out" -serial chardev:out \
  -kernel "$image/vmlinuz" -initrd "$image/initrd" \
  -append "console=ttyS0 quiet loglevel=3 mitigations=off tsc=reliable no_timer_check panic=-1 apparmor=0${VM_SYSTEMD:+ systemd.unit=guest.service}" \
  -drive file="$image/root.ext4",format=raw,if=none,id=root,snapshot=on,cache=unsafe -device virtio-blk-pci,drive=root \
  -drive file="$work/payload.ext4",format=raw,if=none,id=payload,cache=unsafe -device virtio-blk-pci,drive=payload \
  -device virtio-rng-pci < /dev/null > "$work/qemu.log" 2>&1 &
qemu=$!
status= ended=0
while IFS= read -r line; do
  line=${line%$'\r'}
  case $line in "status "*) status=${line#status };; *) printf '%s\n' "$line";; esac
done < "$work/out"
wait "$qemu" || ended=$?
qemu=
if [ -n "$status" ]; then exit "$status"; fi
if [ -s "$work/qemu.log" ]; then cat "$work/qemu.log" >&2; fi
echo "error: the guest did not finish; its console's last lines:" >&2
tail -20 "$log" >&2
if [ "$ended" = 124 ]; then exit 124; fi
exit 125
