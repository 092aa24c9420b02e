#!/bin/bash
# Measures the default model on this machine and records the result for the README: prefill and
# decode rates by context length, against llama.cpp where its Python package is in .venv. Extra
# arguments go to `longspur bench`. Run it on an otherwise idle machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
compare=()
if .venv/bin/python -c 'import importlib.util as u; exit(not u.find_spec("llama_cpp"))'; then
  compare=(--compare llama.cpp)
else
  echo 'bench: llama-cpp-python is not in .venv, nothing to compare with'
fi
mkdir -p build/bench bench/results
build/release/bin/longspur bench --model smollm2 --batch 1 "${compare[@]}" "$@" \
  --output build/bench/cpu.json
.venv/bin/python tools/record_bench.py bench/results/cpu_smollm2.json "" build/bench/cpu.json
for length in 64 512; do
  build/release/bin/longspur bench --model smollm2 --lengths "$length" --batch 1,4,16 --tokens 48 \
    --output "build/bench/batch$length.json"
done
.venv/bin/python tools/record_bench.py bench/results/cpu_smollm2_batch.json \
  "Several sequences at once, SmolLM2-135M-Instruct (Q4_1) on the CPU" build/bench/batch{64,512}.json
.venv/bin/python tools/update_readme.py
