#!/bin/bash
# recipe.sh TAR: a Python kernel image's root file system, from Debian packages: bookworm with Python 3, without
# documentation, manuals and translations. Takes about two minutes; needs mmdebstrap.
# What the image says of itself (labels, environment, command) is in image.json. Its "base-distro" is a name that the 19.03 manager
# and agent know: it chose the C library of the old runner, and means nothing to this agent.
set -euo pipefail
tar=$1
mmdebstrap --format=tar --quiet --variant=minbase --include=python3,netbase,ca-certificates \
  --aptopt='Apt::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --customize-hook='mkdir -p "$1/home/work"' \
  --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*' \
  --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname"' \
  bookworm "$tar" ${BACKENDAI_DEBIAN_MIRROR:+"$BACKENDAI_DEBIAN_MIRROR"}
