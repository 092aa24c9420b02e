#!/bin/bash
# The demo behind `make demo`: a question about a document of about 7,000 tokens, the answer
# streaming, statistics at the end. Extra arguments go to `longspur generate`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
document=build/demo/document.txt
question=$(.venv/bin/python tools/make_demo_document.py "$document")
command=(build/release/bin/longspur generate --model smollm2 --chat --prompt-file "$document"
  -p "$question" --max-tokens 128 "$@")
printf 'demo: a document of %s words, %s\ndemo:' "$(wc -w < "$document")" "$document"
printf ' %q' "${command[@]}"
printf '\n\n'
exec "${command[@]}"
