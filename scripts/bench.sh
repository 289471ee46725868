#!/bin/bash
# make bench: measures the release build; writes target/bench.json and prints a table.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/build-deps.sh
. "$repo/scripts/build-deps.sh"
cd "$repo"
need_build
need_runtime
need_apt runc crun
need_services etcd-server redis-server
BACKENDAI_BENCH_IMAGE=$(scripts/kernel-image.sh python)
BACKENDAI_BENCH_IMAGE_FLAGS=$(scripts/kernel-image.sh --flags python)
export BACKENDAI_BENCH_IMAGE BACKENDAI_BENCH_IMAGE_FLAGS
say "building (release)"
exec cargo bench --quiet --bench agent
