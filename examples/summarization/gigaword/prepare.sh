#!/usr/bin/env bash
# Gigaword headline generation, first sentence to headline -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# GIGAWORD=FILE      the publisher's archive, if it is here already: summary.tar.gz (Rush et al., 2015), or UniLM's copy
#                    of the same text, ggw_data.zip; or a folder with what is in either
# GIGAWORD_URL=URL   where to download summary.tar.gz from otherwise
# PYTHON=PROGRAM     the Python to use (default: python3)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
read_arguments gigaword "$@"

# The checksum is the one that TensorFlow Datasets recorded for this file.
drive="https://drive.usercontent.google.com/download?id=0B6N7tANPyVeBNmlSX19Ld2xDU1E&export=download&confirm=t"
locate GIGAWORD "${GIGAWORD_URL:-$drive}" "$root/data-bin/gigaword_raw/summary.tar.gz" \
    "${GIGAWORD_SHA256:-ffa257f32de233bfc832e9e5e3910cb72f4023b37a86af8fee87b344baeb8a4a}"
extract gigaword
make_data "$raw" --source-lang article --target-lang title --tokenizer-langs en en --tokenised --as-published --merges 30000
