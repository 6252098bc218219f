#!/usr/bin/env bash
# Debian package descriptions, German to English -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# DEBIAN_TEXT=FOLDER  Translation-de and Translation-en as fetched before
#                     (default: data-bin/debian_text, fetched with apt-get if missing)
# PYTHON=PROGRAM      the Python to use (default: python3)
# SOURCE_LANG, TARGET_LANG (default: de, en)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
direction de en
read_arguments "debian_${source_lang}_${target_lang}" "$@"

extract_debian translation
make_data "$raw" --source-lang "$source_lang" --target-lang "$target_lang" --about "$raw/about.json" --merges 10000 --max-ratio 3
