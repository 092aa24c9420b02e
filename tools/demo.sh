#!/bin/bash
# The demo behind `make demo`: a question about a document of about 7,000 tokens, the answer
# streaming, statistics at the end. Extra arguments go to `longspur generate`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
document=build/demo/document.txt
.venv/bin/python tools/make_demo_document.py "$document"
printf 'demo: %s, %s words; its last lines:\n\n' "$document" "$(wc -w < "$document")"
tail -n 5 "$document" | sed 's/^/    /'
printf '\ndemo: longspur generate --model smollm2 --chat --prompt-file %s --max-tokens 128\n\n' "$document"
exec build/release/bin/longspur generate --model smollm2 --chat --prompt-file "$document" \
  --max-tokens 128 "$@"
