#!/bin/bash
# make test: every lane, one after the other. Ends with one line, `N passed, N failed, N skipped`, over all of them.
# Each lane's full output is in target/test-logs; what failed and what was skipped is shown here.
#
#   test.sh [LANE...]     rust, doc, real_stack, vm; all of them without arguments
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

rust_lane() {
  local log=$logs/rust.log status=0 summary p f s start=$SECONDS
  if need_cargo_tool cargo-nextest "$nextest_version"; then
    cargo nextest run --workspace --no-fail-fast --hide-progress-bar --success-output immediate > "$log" 2>&1 || status=$?
    summary=$(grep -E '^ *Summary ' "$log" | tail -1)
    p=$(number_before passed <<< "$summary") s=$(number_before skipped <<< "$summary")
    f=$(( $(number_before failed <<< "$summary") + $(number_before 'timed out' <<< "$summary") + $(number_before 'exec failed' <<< "$summary") ))
    grep -E '^ *(FAIL|TIMEOUT|SIGABRT|SIGSEGV|ABORT) ' "$log" | sort -u
  else
    cargo test --workspace --lib --bins --tests --no-fail-fast -- --nocapture > "$log" 2>&1 || status=$?
    summary=$(grep -E '^test result:' "$log")
    p=$(number_before passed <<< "$summary") f=$(number_before failed <<< "$summary") s=$(number_before ignored <<< "$summary")
    grep -E '^test .* FAILED$' "$log"
  fi
  finish rust "$status" "$log" "$p" "$f" "$s" "$start"
}

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
  if [ -n "$lacking" ] && [ "$lane" = rust ]; then
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

[ $# -gt 0 ] || set -- rust doc real_stack vm
need_build && need_runtime && need_apt python3 python3-venv busybox-static jq iptables &&
  need_services etcd-server redis-server docker-registry || exit 1
say "building"
if ! cargo build --workspace > "$logs/build.log" 2>&1; then
  tail -40 "$logs/build.log" >&2
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi
for lane in "$@"; do
  say "lane $lane"
  case $lane in
    rust) rust_lane;;
    doc) doc_lane;;
    real_stack) script_lane real_stack tests/real_stack/run.sh;;
    vm) script_lane vm tests/vm/lane.sh;;
    *) die "no lane $lane: there are rust, doc, real_stack, vm";;
  esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
