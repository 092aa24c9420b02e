#!/bin/bash
# Runs every libFuzzer binary of build/fuzz for a while each: tools/fuzz.sh [SECONDS [NAME]]. New
# inputs go to build/fuzz/corpus/<name>, findings to build/fuzz/findings; committed corpora are only read.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}
mkdir -p build/fuzz/findings
status=0 ran=0
for binary in build/fuzz/bin/${2:-}*; do
  [ -x "$binary" ] || continue
  name=$(basename "$binary")
  mkdir -p "build/fuzz/corpus/$name"
  inputs=("build/fuzz/corpus/$name")
  # a corpus is a folder named after its target, beside the target or below tests/fuzz
  while IFS= read -r folder; do inputs+=("$folder"); done \
    < <(find src tests -type d \( -path "*corpus/${name#fuzz_}" -o -path "*corpus/$name" \))
  # words of the format, beside the target
  while IFS= read -r words; do inputs+=("-dict=$words"); done \
    < <(find src tests -name "${name#fuzz_}.dict")
  log=build/fuzz/$name.log
  if "$binary" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=3000 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$name-" "${inputs[@]}" > "$log" 2>&1; then
    printf '%s: nothing found in %s runs\n' "$name" \
      "$(awk '/number_of_executed_units/ {print $2}' "$log")"
  else
    printf '%s: FOUND something, see %s and build/fuzz/findings\n' "$name" "$log"
    status=1
  fi
  ran=$((ran + 1))
done
[ "$ran" -gt 0 ] || { echo 'fuzz: no target is built' >&2; exit 1; }
exit "$status"
