#!/bin/bash
# kernel-image.sh NAME: makes the root file system of images/NAME once, in the cache, and prints the tar's path.
# kernel-image.sh --flags NAME: prints the flags of `backendai-agent image import` that carry the labels, environment and
# command of images/NAME/image.json, one word a line.
# kernel-image.sh --ref NAME: prints the image's name and tag.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mode=tar
case ${1:-} in --flags) mode=flags; shift;; --ref) mode=ref; shift;; esac
name=${1:-}
folder=$repo/images/$name
[ -n "$name" ] && [ -f "$folder/recipe.sh" ] || die "kernel-image.sh: no recipe images/$name (there are: $(ls "$repo/images" | xargs))"

build() {
  local tar=$1 temporary=$1.$$.tmp
  [ -e "$tar" ] && return
  mkdir -p "$(dirname "$tar")"
  say "building the $name image's root file system (once)"
  case $name in busybox) need_apt busybox-static;; *) need_apt mmdebstrap;; esac
  if ! as_root bash "$folder/recipe.sh" "$temporary" > "$tar.log" 2>&1; then
    tail -20 "$tar.log" >&2; as_root rm -f "$temporary"
    die "the recipe images/$name failed (log: $tar.log)"
  fi
  mv "$temporary" "$tar"
}

case $mode in
  tar)
    tar=$cache/images/$name-$(key "$folder/recipe.sh").tar
    locked "image-$name" build "$tar"
    echo "$tar";;
  flags)
    need_apt jq
    jq -r '(.labels | to_entries[] | "--label", "\(.key)=\(.value)"), (.env | to_entries[] | "--env", "\(.key)=\(.value)"),
           (.cmd[] | "--cmd=\(.)")' "$folder/image.json";;
  ref)
    need_apt jq
    jq -r '"\(.name):\(.tag)"' "$folder/image.json";;
esac
