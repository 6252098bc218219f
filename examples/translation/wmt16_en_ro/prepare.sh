#!/usr/bin/env bash
# WMT16 English-Romanian, either direction -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# WMT16_EN_RO=FILE      wmt16.tar.gz of Lee et al. (2018): en-ro/train/corpus.bpe.*, dev/dev.bpe.*, test/test.bpe.*.
#                       Linked from github.com/nyu-dl/dl4mt-nonauto (Google Drive; no address for scripts).
# WMT16_EN_RO_URL=URL   where to download it from
# PYTHON=PROGRAM        the Python to use (default: python3)
# SOURCE_LANG, TARGET_LANG (default: en, ro)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
direction en ro
read_arguments "wmt16_${source_lang}_${target_lang}" "$@"

locate WMT16_EN_RO "${WMT16_EN_RO_URL:-}" "$root/data-bin/wmt16_en_ro_raw/wmt16.tar.gz"
extract wmt16_en_ro
make_data "$raw" --source-lang "$source_lang" --target-lang "$target_lang" --tokenised --as-published --merges 40000
