# Defines how a chain of runs is run, for chain.sh and smollm2.sh:
#
#   source launch/stages.sh DIR
#
# enters the checkout and its environment, creates DIR, and sets $out to its
# path. Each stage is a run of python -m ipo_md. A stage that was stopped is
# resumed, and a finished one is skipped. Its output goes to DIR/logs, and its
# progress is shown.

mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

SEED=${SEED:-0}
SMOKE=${SMOKE:-full}
case $SMOKE in full | quick) ;; *)
  echo "SMOKE=$SMOKE is neither full nor quick." >&2; exit 1 ;;
esac

# Each stage has one thread, because two stages run at a time, and so that
# results do not depend on how threads split sums.
export JAX_PLATFORMS=cpu
export XLA_FLAGS='--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
export OMP_NUM_THREADS=1

say() { printf '%s\n' "$*"; }

# stage DIR NAME RUN_FILE ARGUMENTS: runs one stage and shows its progress. The
# model is that of the array `model`, arguments of python -m ipo_md.
stage() {
  local dir=$1 name=$2 run=$3 start=$SECONDS status=0
  shift 3
  if [ -f "$dir/$name/COMPLETED" ]; then
    say "$name is done already."
    return
  fi
  export JAX_COMPILATION_CACHE_DIR=$dir/cache/jax
  python -u -m ipo_md --gin_file="gin/runs/$run.gin" \
    "${model[@]}" --gin_file=gin/tasks/mini_tldr.gin "$@" \
    --gin.MODEL_DIR="$dir/$name" --gin.CACHE_DIR="$dir/cache" \
    --gin.SEED="$SEED" 2>&1 | (
    trap '' TERM # A stage still prints while it saves.
    tee -a "$dir/logs/$name.log" |
      { grep --line-buffered -E '^(step|policy|sampling|judging|tokenis|Resumed|Stopped|ipo_md:|.* is complete)' || true; } |
      sed -u "s/^/  $name: /"
  ) || status=$?
  if [ "$status" != 0 ]; then
    say "$name failed; the end of $dir/logs/$name.log:" >&2
    tail -n 5 "$dir/logs/$name.log" >&2
    return 1
  fi
  if [ -d "$dir/$name" ] && [ ! -f "$dir/$name/COMPLETED" ]; then
    say "$name stopped before its end; repeat the command to resume." >&2
    return 1
  fi
  say "$name took $((SECONDS - start)) s."
}

# both 'COMMAND' 'COMMAND': runs both at the same time; fails if one of them does.
both() {
  local first status=0
  eval "$1" & first=$!
  eval "$2" || status=1
  wait "$first" || status=1
  return $status
}

# interruptible COMMAND: runs a command and turns SIGINT, SIGTERM and SIGHUP into
# SIGTERM to its stages. They save and end, so that none of them still runs when
# the folder is used again.
interruptible() {
  local status=0 group
  set -m
  (trap : TERM; "$@") & group=$!
  set +m
  trap "kill -TERM -- -$group" INT TERM HUP
  while true; do # A signal ends `wait` early.
    wait "$group" || status=$?
    kill -0 "$group" 2>/dev/null || break
  done
  trap - INT TERM HUP
  return $status
}

# settle DIR: marks DIR with this SEED and SMOKE, or checks that it has them.
settle() {
  local settings="SEED=$SEED SMOKE=$SMOKE"
  mkdir -p "$1/logs"
  [ -f "$1/settings" ] || echo "$settings" > "$1/settings"
  if [ "$settings" != "$(cat "$1/settings")" ]; then
    echo "$1 holds a run with $(cat "$1/settings"), not with $settings; choose another folder." >&2
    return 1
  fi
}

# summary DIR: prints the win rates of a report against the supervised policy.
summary() {
  python - "$1/results.json" <<'PYTHON'
import json
import sys

found = json.load(open(sys.argv[1]))
base = found['policies'].index('supervised')
for judge in found['judges']:
  print(f'Win rate against the supervised policy by {judge}:')
  for i, policy in enumerate(found['policies']):
    if i != base:
      low, high = found['interval'][judge][i][base]
      rate = found['win_rate'][judge][i][base]
      print(f'  {policy:12s} {rate:.3f}  [{low:.3f}, {high:.3f}]')
PYTHON
}
