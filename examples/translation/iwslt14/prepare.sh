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

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=${PYTHON:-python3}
source_lang=${SOURCE_LANG:-de}
target_lang=${TARGET_LANG:-en}
destination=$root/data-bin/iwslt14_${source_lang}_${target_lang}
if [[ $# -gt 0 && $1 != -* ]]; then
    destination=$1
    shift
fi

die() {
    echo "prepare.sh: $*" >&2
    exit 1
}

archive=${IWSLT14:-$root/data-bin/iwslt14_raw/de-en.tgz}
if [[ -z ${IWSLT14:-} && ! -f $archive ]]; then
    url=${IWSLT14_URL:-http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz}
    command -v curl >/dev/null || die "curl is missing; download $url and set IWSLT14 to the file"
    mkdir -p "$(dirname "$archive")"
    echo "downloading $url"
    curl --fail --location --silent --show-error --retry 3 --continue-at - --output "$archive.part" "$url" || die "cannot download $url"
    gzip --test "$archive.part" 2>/dev/null || { rm -f "$archive.part"; die "$url is no gzip file, or was cut short"; }
    mv "$archive.part" "$archive"
fi
[[ -f $archive ]] || die "IWSLT14 names no file: $archive"

raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
"$python" "$root/scripts/iwslt14_corpus.py" "$archive" "$raw"
"$python" "$root/scripts/prepare_pairs.py" "$destination" \
    --source-lang "$source_lang" --target-lang "$target_lang" \
    --trainpref "$raw/train" --validpref "$raw/valid" --testpref "$raw/test" \
    --keep-eval --merges 10000 "$@"
