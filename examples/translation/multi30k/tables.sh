#!/usr/bin/env bash
# Make tables of RESULTS.md and docs/further-results.md on Multi30k De-En anew: train what is not trained yet, decode what is not decoded, print.
# (evidence.sh makes those of the ablation and the decoding rule.)
#
#   tables.sh TABLE...
#
# TABLE: teacher longer trained one_time_trained one_time one_time_weight paper_setting paper_choices paper_mans_start
#        mans_start solvers mixed_times objective latent noise_factor self_conditioning_prob choices early_exit shipped shipped_training repeats candidates rerank cmlm_teacher
# OUTPUT=runs/tables  DEVICE=--cpu (empty: a GPU)  JOBS=2  DRY_RUN=1: print the commands
# What starts from an earlier shipped model takes it from this repository's history.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
[[ $# -ge 1 && $1 != -* ]] || usage
for table in "$@"; do
    [[ " $(sed -n '/^# TABLE:/,/^# OUTPUT/p' "$0" | tr '#\n' '  ') " == *" $table "* ]] || die "there is no table $table"
done
device=${DEVICE---cpu}
output=${OUTPUT:-runs/tables}
original=data-bin/multi30k_de_en
distilled=data-bin/multi30k_de_en_distilled
teacher=$distilled.teacher/ar/checkpoint_last.pt
seeds=(1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
cd "$root"

# recipe UPDATES [LEARNING_RATE WARMUP]: options of a training from scratch (or, with the last two, of one from weights).
recipe() {
    echo "--arch fastdiss_tiny --optimizer adam --adam-betas '(0.9,0.98)' --lr ${2:-2e-3} --clip-norm 1" \
        "--lr-scheduler polynomial_decay --total-num-update $1 --warmup-updates ${3:-$(($1 / 6))} --max-tokens 4000 --max-update $1" \
        "--validate-interval 1000 --num-workers $(workers "$device") --log-noise-levels --autocast bf16 $device"
}

# train DATA OPTIONS SYSTEM|NAME=OPTIONS...: the systems of the ablation, and variants.
train() {
    local data=$1 options=$2 variants=()
    shift 2
    [[ $data != "$distilled" ]] || distil
    systems=()
    for system in "$@"; do
        if [[ $system == *=* ]]; then variants+=(--variant "$system"); else systems+=("$system"); fi
    done
    run fastdiss-ablate "$data" --output "$output/$trained" --jobs "${JOBS:-2}" --seeds "${seeds[@]}" \
        --systems "${systems[@]}" "${variants[@]}" --train "$options"
    systems=("${@%%=*}")
}

# sweep SUBSET OPTION...: decode what was trained last.
sweep() {
    local subset=$1 paths=() names=() seed system
    shift
    for seed in "${seeds[@]}"; do
        for system in "${systems[@]}"; do
            names+=("$system")
            paths+=("$output/$trained/$system$([[ $seed == 1 ]] || echo "-seed$seed")/checkpoint_last.pt")
        done
    done
    decode "$subset" "$subset" --path "${paths[@]}" --systems "${names[@]}" "$@"
}

# decode FOLDER SUBSET OPTION...
decode() {
    local folder=$1 subset=$2
    shift 2
    run fastdiss-sweep "$original" --detokenize en --subset "$subset" --reference "$original/raw/$subset.en" \
        --output "$output/$table/$folder" "$@" $device
}

# shipped_at COMMIT: a model that was shipped once.
shipped_at() {
    [[ -z ${DRY_RUN:-} ]] || return 0
    mkdir -p "$output"
    git show "$1:models/multi30k_de_en/model.pt" > "$output/$1.pt"
}

# ablated SYSTEM...: see that evidence.sh has trained them.
ablated() {
    local system
    for system in "$@"; do
        [[ -n ${DRY_RUN:-} || -f runs/ablation/$system/checkpoint_last.pt ]] || die "run evidence.sh first"
    done
}

four=(standard scp mans scp+mans)
plain="--no-scp --no-mans"
earlier="--mixed-times 0.5 --diffusion-loss-weight 1"
early="beta-2-from-0=--no-scp --mans-start 0"
from_0=("mans-from-0=--no-scp --mans-start 0" "scp+mans-from-0=--mans-start 0")
paper_decoding=(--steps 1 2 5 20 --solver ddim --estimate direct --told-noise-factor 4 8)
paper="--mixed-times 0 --self-conditioning-estimate direct --diffusion-loss-weight 1"

# distil: the teacher and its targets, where they are not there.
distil() {
    run env DEVICE="$device" UPDATES=2400 examples/distill.sh "$original" "$distilled"
}

run bash examples/translation/multi30k/prepare.sh

for table in "$@"; do
    seeds=(1) trained=$table
    case $table in
        teacher) # the present defaults on a teacher's targets
            seeds=(2)
            train "$distilled" "$(recipe 1800)" standard scp+mans
            sweep valid --steps 1 2 5 10 20 --repeats keep merge --baseline standard
            sweep test --steps 1 2 3 5 10 20 --repeats keep merge --baseline standard
            sweep test --steps 1 2 5 --self-conditioning recompute --baseline standard
            ;;
        longer) # four times the updates
            train "$distilled" "$(recipe 7200)" standard scp+mans
            sweep valid --steps 1 2 3 5 10 20 --baseline standard
            sweep test --steps 1 2 3 5 10 20 --repeats keep merge --baseline standard
            sweep test --steps 1 2 5 --self-conditioning recompute --baseline standard
            ;;
        trained | one_time_trained) # from the model of 5,400 updates
            shipped_at c745f85
            seeds=(2)
            options="$(recipe 1800 1e-3 100) --finetune-from-model $output/c745f85.pt $earlier"
            if [[ $table == trained ]]; then
                train "$distilled" "$options" "${four[@]}"
                solver=mask_predict
            else
                train "$distilled" "$options --mixed-times 0" standard scp+mans
                solver=renoise
                sweep valid --steps 1 2 5 20 --solver renoise ddim mask_predict
                sweep valid --steps 2 5 20 --solver renoise ddim --told-noise-factor 4
            fi
            sweep valid --steps 1 2 3 5 10 20 --solver $solver --baseline standard
            sweep test --steps 1 2 3 5 10 20 --solver $solver --baseline standard
            sweep test --steps 1 2 5 20 --solver $solver --self-conditioning recompute --baseline standard
            ;;
        one_time) # one time for all tokens, from scratch
            seeds=(3)
            train "$distilled" "$(recipe 1800) --mixed-times 0" standard scp
            sweep valid --steps 1 2 5 10 --solver renoise --baseline standard
            sweep test --steps 1 2 3 5 10 20 --solver renoise --baseline standard
            sweep test --steps 2 5 --solver renoise --self-conditioning recompute --baseline standard
            seeds=(2)
            train "$distilled" "$(recipe 1800) --mixed-times 0" "${four[@]}"
            sweep valid --steps 1 2 5 10 20 --solver renoise ddim --baseline standard
            sweep test --steps 1 2 3 5 10 20 --solver renoise --baseline standard
            sweep test --steps 1 2 5 10 --solver renoise --self-conditioning recompute none --baseline standard
            run scripts/self_conditioning_gap.py "$original" --path "$output"/one_time/*-seed2/checkpoint_last.pt \
                --output "$output/one_time/gap.json" $device
            ;;
        one_time_weight)
            seeds=(2)
            train "$distilled" "$(recipe 900) --mixed-times 0" \
                "weight-1=$plain --diffusion-loss-weight 1" "weight-0.1=$plain --diffusion-loss-weight 0.1"
            sweep valid --steps 1 2 5 10 20 --solver renoise ddim --estimate expected direct
            ;;
        paper_setting) # one time for all tokens, the network's own estimates, DDIM
            seeds=(1 2 3)
            train "$distilled" "$(recipe 1800) $paper" "${four[@]}"
            sweep valid --steps 1 2 5 20 --solver ddim renoise --estimate direct --told-noise-factor 4 8 --baseline standard
            sweep valid --steps 1 2 5 20 --solver ddim renoise --estimate expected --baseline standard
            sweep test --steps 1 2 3 5 10 20 --solver ddim --estimate direct --told-noise-factor 4 8 --baseline standard
            sweep test --steps 2 5 20 --solver ddim --estimate direct --told-noise-factor 4 8 --self-conditioning recompute --baseline standard
            sweep test --steps 2 5 20 --solver ddim --estimate direct --told-noise-factor 4 --self-conditioning none --baseline standard
            ;;
        paper_choices) # from paper_setting's standard system
            train "$distilled" "$(recipe 600 5e-4 50) $paper --finetune-from-model $output/paper_setting/standard-seed2/checkpoint_last.pt" standard scp \
                "gamma-half=--scp-rule gamma --scp-gamma 0.5 --no-mans" "gamma=--scp-rule gamma --no-mans" "late=--scp-budgets 10,20 --no-mans" \
                "fresh=--scp-coupling fresh --no-mans" "two-hops=--scp-hops 2 --no-mans" "$early"
            sweep valid "${paper_decoding[@]}" --baseline standard
            for seed in 1 3; do
                trained=paper_choices_from_$seed base=$output/paper_setting/standard$([[ $seed == 1 ]] || echo "-seed$seed")
                train "$distilled" "$(recipe 600 5e-4 50) $paper --finetune-from-model $base/checkpoint_last.pt" standard "$early"
                decode "from_$seed" valid --path "$output/$trained/standard/checkpoint_last.pt" "$output/$trained/beta-2-from-0/checkpoint_last.pt" \
                    --systems standard beta-2-from-0 "${paper_decoding[@]}" --baseline standard
            done
            ;;
        paper_mans_start) # MANS from the first update on, beside paper_setting's systems
            seeds=(1 2 3) trained=paper_setting
            train "$distilled" "$(recipe 1800) $paper" "${four[@]}" "${from_0[@]}"
            sweep valid "${paper_decoding[@]}" --baseline standard
            sweep test --steps 1 2 3 5 10 20 --solver ddim --estimate direct --told-noise-factor 4 8 --baseline standard
            ;;
        mans_start) # the same with the present defaults, beside evidence.sh's systems
            seeds=(1 2 3)
            train "$original" "$(recipe 1800)" "${from_0[1]}"
            names=() paths=()
            for seed in "" -seed2 -seed3; do
                ablated "standard$seed" "scp$seed" "scp+mans$seed"
                names+=(standard scp scp+mans scp+mans-from-0)
                paths+=(runs/ablation/{standard,scp,scp+mans}"$seed/checkpoint_last.pt" "$output/$table/scp+mans-from-0$seed/checkpoint_last.pt")
            done
            for subset in valid test; do
                decode $subset $subset --path "${paths[@]}" --systems "${names[@]}" --steps 1 2 3 5 10 20 --baseline standard
            done
            ;;
        solvers) # of the models of one_time
            seeds=(2) trained=one_time
            train "$distilled" "$(recipe 1800) --mixed-times 0" standard scp+mans
            sweep valid --steps 1 2 3 5 --solver renoise ddim ddpm dpmpp_2m
            systems=(standard)
            sweep valid --steps 2 5 --solver renoise ddim --noise-factor 2 4 8 --told-noise-factor 4 8
            sweep valid --steps 2 5 --solver renoise --temperature 0 0.5
            ;;
        mixed_times)
            train "$distilled" "$(recipe 1800) --diffusion-loss-weight 1" \
                "half=$plain --mixed-times 0.5" "three-quarters=$plain --mixed-times 0.75" "all=$plain --mixed-times 1"
            sweep valid --steps 1 2 5 10 --repeats keep merge
            ;;
        objective)
            train "$original" "$(recipe 900)" \
                "weight-1=$plain --diffusion-loss-weight 1" "weight-0.1=$plain --diffusion-loss-weight 0.1" "weight-0=$plain --diffusion-loss-weight 0" \
                "weight-1-smooth=$plain --diffusion-loss-weight 1 --label-smoothing 0.1" "weight-0.1-smooth=$plain --label-smoothing 0.1"
            sweep valid --steps 1 2 5 10
            ;;
        latent)
            train "$original" "$(recipe 900)" "latent-128=$plain --latent-dim 128" "shared=$plain --share-all-embeddings"
            sweep valid --steps 1 2 5 10
            ;;
        noise_factor) # of training
            train "$original" "$(recipe 900)" "factor-1=$plain --noise-factor 1" "factor-2=$plain --noise-factor 2" "factor-8=$plain --noise-factor 8"
            sweep valid --steps 1 2 5 10
            ;;
        self_conditioning_prob)
            train "$original" "$(recipe 900)" \
                "a-quarter=$plain --self-conditioning-prob 0.25" "half=$plain --self-conditioning-prob 0.5" "three-quarters=$plain --self-conditioning-prob 0.75"
            sweep valid --steps 1 2 5 10 --self-conditioning previous recompute
            ;;
        choices) # from evidence.sh's standard system
            ablated standard
            options="$(recipe 600 5e-4 50) --finetune-from-model runs/ablation/standard/checkpoint_last.pt"
            train "$original" "$options" standard scp \
                "uniform=--scp-rule uniform --no-mans" "fresh=--scp-coupling fresh --no-mans" "gamma=--scp-rule gamma --no-mans" \
                "two-hops=--scp-hops 2 --no-mans" "beta-2=--no-scp" \
                "beta-2-from-0=--no-scp --mans-start 0" "beta-4=--no-scp --mans-scale 4"
            sweep valid --steps 1 2 5 20 --baseline standard
            ;;
        early_exit) # of evidence.sh's systems and the shipped model
            names=(shipped) paths=(models/multi30k_de_en)
            for system in "${four[@]}"; do
                ablated "$system" "$system-seed2"
                names+=("$system" "$system")
                paths+=("runs/ablation/$system/checkpoint_last.pt" "runs/ablation/$system-seed2/checkpoint_last.pt")
            done
            for grid in "--steps 10 14 20" "--steps 20 --early-exit"; do
                decode valid valid --path "${paths[@]}" --systems "${names[@]}" $grid
            done
            ;;
        shipped_training) # from the model shipped before to that of this checkout
            shipped_at b3b490f
            seeds=(3)
            train "$distilled" "$(recipe 5400 1e-3 100) --finetune-from-model $output/b3b490f.pt $earlier" scp+mans
            sweep valid --steps 1 2 3 5 10 20
            ;;
        shipped)
            for subset in valid test; do
                decode $subset $subset --path models/multi30k_de_en --systems shipped --steps 1 2 3 5 10 20 --length-factor 1 1.06
                decode $subset $subset --path models/multi30k_de_en --systems shipped --steps 1 5 --length-beam 10 --choice mbr
            done
            decode test test --path models/multi30k_de_en --systems shipped --steps 1 2 3 5 10 20 --repeats keep
            decode test test --path models/multi30k_de_en --systems shipped --steps 1 2 5 --self-conditioning recompute
            ;;
        repeats | candidates) # of the model of 5,400 updates
            shipped_at c745f85
            for subset in valid test; do
                if [[ $table == repeats ]]; then
                    grid=(--steps 1 2 3 5 10 20 --repeats keep merge --length-factor 1 1.06)
                else
                    grid=(--steps 1 5 --length-beam 1 5 10 --choice score mbr)
                fi
                decode $subset $subset --path "$output/c745f85.pt" --systems standard "${grid[@]}"
            done
            ;;
        rerank)
            distil
            for subset in valid test; do
                decode $subset $subset --path models/multi30k_de_en --systems shipped --reranker "$teacher" --steps 1 2 5 \
                    --length-beam 5 10 --choice mbr ar
            done
            ;;
        cmlm_teacher)
            distil
            run env UPDATES=1800 DEVICE="$device" examples/baselines.sh cmlm "$distilled" "$output/$table"
            decode test test --outputs "cmlm:1=$output/$table/cmlm_1.txt" "cmlm:4=$output/$table/cmlm_4.txt" "cmlm:10=$output/$table/cmlm_10.txt" \
                --output-repeats keep merge
            ;;
    esac
done
