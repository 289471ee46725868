#!/bin/bash
# image.sh: makes the guest's kernel, initial root and disk once, in the cache; prints their folder. Two minutes; root.
# The guest is Debian with its cloud kernel, and process 1 is ./init, or systemd.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

# The kernel's package is only unpacked: installing it would build an initramfs that nobody uses.
kernel_hook='chroot "$1" sh -ec "
  cd /tmp
  package=\$(apt-cache depends linux-image-cloud-amd64 | sed -n \"s/.*Depends: \\(linux-image-[^ ]*\\)/\\1/p\" | head -1)
  apt-get -q download \"\$package\"
  dpkg-deb -x \"\$package\"_*.deb k
  mkdir -p /lib/modules
  cp -a k/lib/modules/. /lib/modules/
  cp k/boot/vmlinuz-* /boot/
  rm -rf k *.deb"'

root_tree() {
  local root=$1 packages
  packages=$(paste -sd, "$here/packages")
  mmdebstrap --quiet --mode=root --format=directory --variant=minbase --include="$packages" \
    --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="$kernel_hook" \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
    bookworm "$root" ${BACKENDAI_DEBIAN_MIRROR:+"$BACKENDAI_DEBIAN_MIRROR"} || return
  depmod -b "$root" "$(ls "$root/lib/modules")" || return
  install -m 755 "$here/init" "$root/sbin/guest-init"
  install -m 644 "$here/guest.service" "$root/etc/systemd/system/guest.service"
}

# An initial root that loads the disk's driver and goes on to the disk.
initial_root() {
  local root=$1 target=$2 work=$3 version module n=0
  version=$(ls "$root/lib/modules")
  mkdir -p "$work"/{bin,dev,new,modules}
  cp "$(command -v busybox)" "$work/bin/busybox"
  for module in virtio_pci virtio_blk ext4; do
    modprobe -d "$root" -S "$version" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
  done | awk '!seen[$0]++' | while read -r module; do n=$((n + 1)); cp "$module" "$work/modules/$(printf %02d $n).ko"; done
  cat > "$work/init" << 'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in /modules/*.ko; do $b insmod $module; done
$b mount -t ext4 -o rw,noatime /dev/vda /new
$b mount --move /dev /new/dev
exec $b switch_root /new /sbin/guest-init
INIT
  chmod +x "$work/init"
  (cd "$work" && find . -print0 | cpio -0o -H newc --quiet) | gzip -1 > "$target"
}

build() {
  local folder=$1 work version
  [ -e "$folder/complete" ] && return
  say "building the virtual machine's disk (once; two minutes)"
  rm -rf "$folder"
  mkdir -p "$folder"
  work=$(mktemp -d "${TMPDIR:-/var/tmp}/bai-vm.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  # In a condition bash does not end at the first failure by itself.
  root_tree "$work/root" &&
    version=$(ls "$work/root/lib/modules") &&
    mv "$work/root/boot/vmlinuz-$version" "$folder/vmlinuz" &&
    initial_root "$work/root" "$folder/initrd" "$work/initial" &&
    truncate -s 3G "$folder/root.ext4" &&
    mke2fs -q -t ext4 -O ^has_journal -d "$work/root" "$folder/root.ext4" &&
    touch "$folder/complete"
}

need_apt mmdebstrap e2fsprogs busybox-static cpio kmod
folder=$cache/vm/$(key "$here/image.sh" "$here/init" "$here/guest.service" "$here/packages")
mkdir -p "$cache/vm"
if [ ! -e "$folder/complete" ] && ! locked vm-image build "$folder" > "$cache/vm/build.log" 2>&1; then
  tail -20 "$cache/vm/build.log" >&2
  die "the virtual machine's disk could not be built (log: $cache/vm/build.log)"
fi
echo "$folder"
