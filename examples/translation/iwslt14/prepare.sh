#!/usr/bin/env bash
# IWSLT14 German-English, either direction -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# IWSLT14=FILE       the publisher's archive de-en.tgz, if it is here already
# IWSLT14_URL=URL    where to download it from otherwise
# PYTHON=PROGRAM     the Python to use (default: python3)
# SOURCE_LANG, TARGET_LANG (default: de, en)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
direction de en
read_arguments "iwslt14_${source_lang}_${target_lang}" "$@"

locate IWSLT14 "${IWSLT14_URL:-http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz}" \
    "$root/data-bin/iwslt14_raw/de-en.tgz"
extract iwslt14
make_data "$raw" --source-lang "$source_lang" --target-lang "$target_lang" --keep-eval --merges 10000
