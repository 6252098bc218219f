#!/usr/bin/env bash
# Debian packages, long description to one-line synopsis (English) -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# MAX_WORDS=NUMBER    cut long descriptions after so many words (default: 100; 0: never)
# DEBIAN_TEXT=FOLDER  Translation-de and Translation-en as fetched before
#                     (default: data-bin/debian_text, fetched with apt-get if missing)
# PYTHON=PROGRAM      the Python to use (default: python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=${PYTHON:-python3}
text=${DEBIAN_TEXT:-$root/data-bin/debian_text}
destination=$root/data-bin/debian_synopses
if [[ $# -gt 0 && $1 != -* ]]; then
    destination=$1
    shift
fi

raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
"$python" "$root/scripts/debian_corpus.py" fetch "$text"
"$python" "$root/scripts/debian_corpus.py" synopses "$text" "$raw" \
    --max-words "${MAX_WORDS:-100}"
# Packages of one source have nearly the same description: a common opening of eight
# words with a held-out package keeps a package out of train.
"$python" "$root/scripts/prepare_pairs.py" "$destination" \
    --source-lang desc --target-lang syn --tokenizer-langs en en \
    --trainpref "$raw/train" --validpref "$raw/valid" --testpref "$raw/test" \
    --about "$raw/about.json" --merges 10000 --distinct-opening 8 "$@"
