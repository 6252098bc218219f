#!/usr/bin/env bash
# Wiki-Auto, a sentence of Wikipedia to a simpler one -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# WIKI_AUTO=PATH      train.jsonl, valid.jsonl and test.jsonl as DiffuSeq publishes them: the folder, or an archive of it
#                     (a Google Drive folder, linked from github.com/Shark-NLP/DiffuSeq; it has no address for scripts)
# WIKI_AUTO_URL=URL   where to download such an archive from
# PYTHON=PROGRAM      the Python to use (default: python3)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
read_arguments wiki_auto "$@"

locate WIKI_AUTO "${WIKI_AUTO_URL:-}" "$root/data-bin/wiki_auto_raw/wiki_auto.zip"
extract diffuseq
make_data "$raw" --source-lang src --target-lang trg --tokenizer-langs en en --as-published --merges 20000
