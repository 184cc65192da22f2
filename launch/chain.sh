# Defines the stages of the embedded chain, for smoke.sh and smoke_proof.sh:
#
#   source launch/chain.sh DIR

source "$(dirname "${BASH_SOURCE[0]}")/stages.sh" "$1"

model=(--gin_file=gin/models/t5_tiny.gin)
case $SMOKE in
  full) sft=1200 judge=600 comparator=300 policy=200 prompts=1024 evaluated=256 ;;
  quick) sft=60 judge=20 comparator=10 policy=10 prompts=64 evaluated=128 ;;
esac

# So few steps take less time than compiling an optimised program.
[ "$SMOKE" = quick ] && XLA_FLAGS+=' --xla_backend_optimization_level=0'

# train DIR NAME RUN_FILE STEPS ARGUMENTS: runs a stage that trains.
train() {
  local dir=$1 name=$2 run=$3 steps=$4
  shift 4
  stage "$dir" "$name" "$run" "$@" --gin_file=gin/smoke.gin \
    --gin.TRAIN_STEPS="$steps" --gin.CHECKPOINT_PERIOD=$((steps / 5)) \
    --gin.EVAL_PERIOD=$((steps / 5)) --gin.LOG_PERIOD=$((steps / 10)) \
    --gin.EVAL_EXAMPLES=$evaluated
}

# supervised DIR: fine-tunes the policy that all others start from.
supervised() {
  train "$1" supervised supervised "$sft" \
    --gin.LEARNING_RATE=3e-3 --gin.WARMUP_STEPS=$((sft / 12))
}

# judge DIR NAME JUDGE STEPS: trains gin/judges/JUDGE.gin from that policy.
judge() {
  train "$1" "$2" judge "$4" --gin_file="gin/judges/$3.gin" \
    --gin.INITIAL_CHECKPOINT_PATH="'$1/supervised'" \
    --gin.LEARNING_RATE=1e-3 --gin.WARMUP_STEPS=$(($4 / 12))
}

# policy DIR NAME RUN ALGORITHM ARGUMENTS: trains a policy, online or offline.
policy() {
  local dir=$1 name=$2 run=$3 algorithm=$4
  shift 4
  train "$dir" "$name" "$run" "$policy" \
    --gin_file="gin/algorithms/$algorithm.gin" \
    --gin_file=gin/judges/likelihood.gin \
    --gin.INITIAL_CHECKPOINT_PATH="'$dir/supervised'" \
    --gin.JUDGE_CHECKPOINT_PATH="'$dir/reward_model'" \
    --gin.LEARNING_RATE=4e-4 --gin.WARMUP_STEPS=$((policy / 20)) \
    --gin.TAU=0.03 --gin.KEEP_CHECKPOINTS=None "$@"
}

# side_by_side DIR OFFLINE [MORE]: compares policies. OFFLINE is the offline run,
# and MORE has further entries of the gin dictionary POLICIES.
side_by_side() {
  stage "$1" report side_by_side_mini_tldr \
    --gin.POLICIES="{'supervised': '$1/supervised', 'offline_ipo': '$1/$2:best', 'ipo': '$1/ipo', 'ipo_md': '$1/ipo_md'${3:-}}" \
    --gin.REFERENCE_CHECKPOINT_PATH="'$1/supervised'" \
    --gin.PREFERENCE_MODEL_CHECKPOINT_PATH="'$1/preference_model'" \
    --gin.REWARD_MODEL_CHECKPOINT_PATH="'$1/reward_model'" \
    --gin.EVAL_EXAMPLES="$prompts" --gin.EVAL_BATCH_SIZE=64
}

# policies DIR: runs the chain up to the online policies.
policies() {
  settle "$1"
  export SEED SMOKE
  supervised "$1"
  both "judge ${1@Q} reward_model likelihood $judge" \
    "judge ${1@Q} preference_model comparator $comparator"
  both "policy ${1@Q} ipo online ipo" "policy ${1@Q} ipo_md online ipo_md"
}

# chain DIR: runs the whole chain.
chain() {
  policies "$1"
  policy "$1" offline_ipo offline ipo
  side_by_side "$1" offline_ipo
}
