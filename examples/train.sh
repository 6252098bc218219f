#!/usr/bin/env bash
# Train FastDiSS with the settings of a recipe (examples/config/recipe), SCP and MANS on.
#
#   train.sh DATA OUTPUT [HYDRA OVERRIDE ...]
#
# DATA is a folder that the recipe's prepare.sh made.  An override looks like optimization.max_update=1000 or, for an
# option that the YAML files do not name, +criterion.no_scp=true.
#
# RECIPE=KIND/NAME  the recipe, where DATA does not say it (folders made before recipes were written down)
# DEVICE=           --cpu: no GPU (and no bfloat16)
#
# Checkpoints and train.log go to OUTPUT.  An interrupted training goes on where it was.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/recipe.sh"
[[ $# -ge 2 ]] || usage
data=$1 output=$2
shift 2
recipe=$(recipe_of "$data")
languages "$data"
[[ -f $root/examples/config/recipe/${recipe##*/}.yaml ]] || die "there is no examples/config/recipe/${recipe##*/}.yaml"
[[ $PWD$data$output$root != *\'* ]] || die "a path must have no ', which hydra could not read"
[[ -z ${DEVICE:-} || $DEVICE == --cpu ]] || die "DEVICE must be --cpu or nothing, not $DEVICE"
mkdir -p "$output"
data=$(cd "$data" > /dev/null && pwd) output=$(cd "$output" > /dev/null && pwd)

device=()
[[ ${DEVICE:-} == --cpu ]] && device=(common.cpu=true model.autocast=none)
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} HYDRA_FULL_ERROR=1 # mistakes end in one line: hydra's own handling shows where it was
fairseq-hydra-train --config-dir "$root/examples/config" --config-name fastdiss "+recipe=${recipe##*/}" \
    "task.data='$data'" "common.user_dir='$root/fastdiss_fairseq'" "checkpoint.save_dir='$output'" "hydra.run.dir='$output/hydra'" \
    "task.source_lang=$source_lang" "task.target_lang=$target_lang" \
    "task.eval_bleu_detok_args='{\"target_lang\": \"${languages##* }\"}'" "${device[@]}" "$@" 2>&1 | tee -a "$output/train.log"
