#!/bin/bash
# make test: every lane, one after the other. Ends with one line, `N passed, N failed, N skipped`, over all of them.
# Each lane's full output is in target/test-logs; what failed and what was skipped is shown here.
#
#   test.sh [LANE...]     rust, containerd, docker, newer, doc, real_stack, vm; all of them without arguments; or rootless,
#                         which is a part of real_stack
#   test.sh --runtime E [--debian SUITE] [--store containerd] [--handler H]
#                         one engine alone (youki, containerd, docker): conformance, lifecycle, the program itself. The machine's, or
#                         that of a suite of Debian (trixie, sid); Docker's images in containerd's store; containerd on the
#                         handler runc, crun or youki
#   test.sh --runtime youki --rootless yes
#                         the real manager with an agent that an ordinary user runs
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/build-deps.sh
. "$repo/scripts/build-deps.sh"
set +e  # a failing command is a result here, not the end
cd "$repo"
rm -rf "$logs"
mkdir -p "$logs"
passed=0 failed=0 skipped=0

# count PASSED FAILED SKIPPED LANE SECONDS: adds a lane's result.
count() {
  passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
  printf '    %s: %s passed, %s failed, %s skipped (%s s)\n' "$4" "$1" "$2" "$3" "$5"
}
sum() { awk '{ n += $1 } END { print n + 0 }'; }
number_before() { grep -oE "[0-9]+ $1" | sum; }

# A Rust test that lacks something prints one line `skipped: needs ...` and returns; nothing else may begin so.
skips_in() { grep -oE '^ *skipped: needs .*' "$1" | sed 's/^ */    /'; }

# Which tests belong to an engine: those in a module, or a test program, that has its name. Unit tests need no daemon.
of_engine() { echo "(kind(test) & (test(/(^|::)$1(_|::)/) | binary(/^$1/)))"; }
others="$(of_engine containerd) | $(of_engine docker)"
# Without nextest, libtest's own filter does for a lane of one engine; the rust lane runs everything then, and each test starts
# its own daemon.
# rust_lane NAME FILTER [COMMAND...]: the Rust tests that a filter of nextest takes, inside of a command.
rust_lane() {
  local name=$1 filter=$2 log=$logs/$1.log status=0 summary p f s start=$SECONDS
  shift 2
  if need_cargo_tool cargo-nextest "$nextest_version"; then
    "$@" cargo nextest run --workspace --no-fail-fast --hide-progress-bar --success-output immediate -E "$filter" > "$log" 2>&1 || status=$?
    summary=$(grep -E '^ *Summary ' "$log" | tail -1)
    p=$(number_before passed <<< "$summary") s=0
    f=$(( $(number_before failed <<< "$summary") + $(number_before 'timed out' <<< "$summary") + $(number_before 'exec failed' <<< "$summary") ))
    grep -E '^ *(FAIL|TIMEOUT|SIGABRT|SIGSEGV|ABORT) ' "$log" | sort -u
  else
    [ "$name" = rust ] && name_filter= || name_filter=${name%%-*}::
    # shellcheck disable=SC2086
    "$@" cargo test --workspace --lib --bins --tests --no-fail-fast -- --nocapture $name_filter > "$log" 2>&1 || status=$?
    summary=$(grep -E '^test result:' "$log")
    p=$(number_before passed <<< "$summary") f=$(number_before failed <<< "$summary") s=$(number_before ignored <<< "$summary")
    grep -E '^test .* FAILED$' "$log"
  fi
  finish "$name" "$status" "$log" "$p" "$f" "$s" "$start"
}
# engine_lane ENGINE FILTER [SUITE [STORE [HANDLER]]]: the tests of an engine with a daemon, which all share one: the machine's, or a
# suite's of Debian, Docker's with another store of images, containerd's on another handler.
engine_lane() {
  local engine=$1 filter=$2 suite=${3:-} store=${4:-} handler=${5:-} program=${5:-}
  local name=$engine${suite:+-$suite}${store:+-$store}${handler:+-$handler}
  if [ "$handler" = youki ]; then
    # With debug assertions it writes of its own among what containers write, where there is no journald.
    CARGO_PROFILE_DEV_DEBUG_ASSERTIONS=false need_cargo_tool youki "$youki_version" --no-default-features --features v1,v2,systemd,seccomp || die "youki cannot be installed"
    program=$(command -v youki)
  fi
  if [ -n "$suite" ] && ! as_root env HOME="$HOME" tests/daemons/debian.sh "$suite" > "$logs/$name.log"; then
    echo "    skipped: needs the engines of Debian $suite"
    count 0 0 1 "$name" 0
    return
  fi
  rust_lane "$name" "$filter" env BACKENDAI_TEST_RUNTIME="$engine" ${suite:+BACKENDAI_TEST_DEBIAN="$suite"} \
    ${store:+BACKENDAI_TEST_DOCKER_STORE="$store"} ${program:+BACKENDAI_TEST_HANDLER="$program"} tests/daemons/lane.sh "$engine"
}
# All of an engine's tests, and the program itself on it.
whole() { echo "$(of_engine "$1") | binary(node)"; }
# newer_lane: the promises of the contract on engines newer than the machine's, of a suite that stands still; sid's, which another
# day are others, are tested on demand (DEBIAN=sid) and in the matrix.
newer_lane() {
  engine_lane containerd "$(promises containerd)" trixie
  engine_lane docker "$(promises docker)" trixie containerd
}
promises() { echo "(binary(conformance) & test(/(^|::)$1::/)) | (binary($1) & test(/images/))"; }

doc_lane() {
  local log=$logs/doc.log status=0 summary start=$SECONDS
  cargo test --workspace --doc --no-fail-fast > "$log" 2>&1 || status=$?
  summary=$(grep -E '^test result:' "$log")
  grep -E '^test .* FAILED$' "$log"
  finish doc "$status" "$log" "$(number_before passed <<< "$summary")" "$(number_before failed <<< "$summary")" \
    "$(number_before ignored <<< "$summary")" "$start"
}

# script_lane NAME COMMAND...: a lane that prints `ok NAME`, `FAILED NAME` and `skipped NAME: needs ...` itself.
script_lane() {
  local name=$1 log=$logs/$1.log status start=$SECONDS; shift
  "$@" 2>&1 | tee "$log" | grep -E --line-buffered '^(FAILED|skipped) |^    |^error|^==>'
  status=${PIPESTATUS[0]}
  finish "$name" "$status" "$log" "$(grep -c '^ok ' "$log")" "$(grep -c '^FAILED ' "$log")" "$(grep -c '^skipped ' "$log")" "$start"
}

# finish LANE STATUS LOG PASSED FAILED SKIPPED START: a lane that broke without naming a failed test counts as one failure.
finish() {
  local lane=$1 status=$2 log=$3 p=$4 f=$5 s=$6 start=$7 lacking
  # what lacks cgroup v2 here runs in the virtual machine, and is counted there
  lacking=$(skips_in "$log" | sed 's/version 2 cgroup.*/& (runs in the virtual machine)/')
  if [ -n "$lacking" ] && [[ $lane =~ ^(rust|youki|containerd.*|docker.*)$ ]]; then
    echo "$lacking"
    p=$((p - $(wc -l <<< "$lacking"))) s=$((s + $(grep -vc 'runs in the virtual machine' <<< "$lacking")))
  fi
  if [ "$status" != 0 ] && [ "$f" = 0 ]; then
    echo "    the lane broke (exit status $status); its last lines:"
    tail -30 "$log" | sed 's/^/    | /'
    f=1
  elif [ "$f" != 0 ]; then
    echo "    details: $log"
  fi
  count "$p" "$f" "$s" "$lane" $((SECONDS - start))
}

# One engine: its lane, and for the engine without a daemon what runs on it in the rust lane.
engine='' suite='' store='' handler='' rootless=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --runtime) engine=${2:-};;
    --debian) suite=${2:-};;
    --store) store=${2:-};;
    --handler) handler=${2:-};;
    --rootless) rootless=${2:-};;
    *) die "no option $1";;
  esac
  shift 2
done
case $engine:$store:$handler in
  ::) ;;
  youki::) [ -z "$suite" ] || die "youki is a part of the agent: Debian has no other one";;
  containerd::*|docker::|docker:containerd:) ;;
  youki:*|containerd:*|docker:*) die "stores are docker's (containerd), handlers are containerd's (runc, crun, youki)";;
  *) die "no runtime $engine: there are youki, containerd, docker";;
esac
case $engine:$rootless in
  *:) ;;
  youki:yes) engine=rootless;;
  *) die "only youki runs rootless so far: RUNTIME=youki ROOTLESS=yes";;
esac
[ -z "$engine" ] || set -- "$engine"
[ $# -gt 0 ] || set -- rust containerd docker newer doc real_stack vm
wants() { local lane; for lane in "${lanes[@]}"; do case $lane in $1) return 0;; esac; done; return 1; }
lanes=("$@")
need_build && need_runtime && need_apt python3 python3-venv busybox-static jq iptables &&
  need_services etcd-server redis-server docker-registry || exit 1
if wants 'rust|containerd|docker|newer|real_stack'; then need_services containerd runc docker.io || exit 1; fi
say "building"
if ! cargo build --workspace > "$logs/build.log" 2>&1; then
  tail -40 "$logs/build.log" >&2
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi
for lane in "$@"; do
  say "lane $lane"
  case $lane in
    rust) rust_lane rust "not ($others)";;
    youki) rust_lane youki "(kind(test) & (test(/(^|::)youki::/) | binary(node))) - ($others)";;
    containerd|docker) engine_lane "$lane" "$(whole "$lane")" "$suite" "$store" "$handler";;
    newer) newer_lane;;
    doc) doc_lane;;
    rootless) script_lane rootless tests/real_stack/run.sh --rootless;;
    real_stack) script_lane real_stack tests/real_stack/run.sh --all;;
    vm) script_lane vm tests/vm/lane.sh;;
    *) die "no lane $lane: there are rust, youki, containerd, docker, newer, doc, real_stack, rootless, vm";;
  esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
