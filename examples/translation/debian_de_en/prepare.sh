#!/usr/bin/env bash
# Debian package descriptions, German to English -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# DEBIAN_TEXT=FOLDER  Translation-de and Translation-en as fetched before
#                     (default: data-bin/debian_text, fetched with apt-get if missing)
# PYTHON=PROGRAM      the Python to use (default: python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=${PYTHON:-python3}
text=${DEBIAN_TEXT:-$root/data-bin/debian_text}
destination=$root/data-bin/debian_de_en
if [[ $# -gt 0 && $1 != -* ]]; then
    destination=$1
    shift
fi

raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
"$python" "$root/scripts/debian_corpus.py" fetch "$text"
"$python" "$root/scripts/debian_corpus.py" translation "$text" "$raw"
"$python" "$root/scripts/prepare_pairs.py" "$destination" \
    --source-lang de --target-lang en \
    --trainpref "$raw/train" --validpref "$raw/valid" --testpref "$raw/test" \
    --about "$raw/about.json" --merges 10000 --max-ratio 3 "$@"
