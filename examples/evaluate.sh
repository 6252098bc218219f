#!/usr/bin/env bash
# Score the output of generate.sh with the metrics that the literature reports for the task, as JSON with signatures.
#
#   evaluate.sh DATA GENERATED [OPTION OF fastdiss-score ...]
#
# RECIPE=KIND/NAME  the recipe, where DATA does not say it; its kind chooses the metrics
# METRICS="..."     other metrics    SUBSET=test
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/recipe.sh"
[[ $# -ge 2 ]] || usage
data=$1 generated=$2
shift 2
recipe=$(recipe_of "$data")
languages "$data"
raw=$data/raw/${SUBSET:-test}

# BLEU is sacreBLEU's on raw references, tokBLEU that of Moses tokens; sentenceBLEU and dist-1 are DiffuSeq's means over sentences.
case $recipe,$target_lang in
    translation/wmt14_en_de,de) metrics=(BLEU chrF tokBLEU compoundBLEU) ;;
    translation/*) metrics=(BLEU chrF tokBLEU) ;;
    summarization/*) metrics=(ROUGE-1 ROUGE-2 ROUGE-L) ;;
    paraphrase/*) metrics=(BLEU tokBLEU sentenceBLEU ROUGE-L dist-1) ;;
    simplification/*) metrics=(BLEU tokBLEU sentenceBLEU ROUGE-L dist-1 SARI) ;;
    *) die "there is no recipe $recipe" ;;
esac
[[ -z ${METRICS:-} ]] || read -ra metrics <<< "$METRICS"

fastdiss-score "$generated" "$raw.$target_lang" --source "$raw.$source_lang" --detokenize "${languages##* }" \
    --metrics "${metrics[@]}" "$@"
