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

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
read_arguments debian_synopses "$@"

extract_debian synopses --max-words "${MAX_WORDS:-100}"
# Packages of one source have nearly the same description: a common opening of eight
# words with a held-out package keeps a package out of train.
make_data "$raw" --source-lang desc --target-lang syn --tokenizer-langs en en \
    --about "$raw/about.json" --merges 10000 --distinct-opening 8
