#!/usr/bin/env bash
# Measures how exploitable the policies of a finished sweep are:
#
#   bash launch/best_responses.sh out_mini_paper [mini_tldr_cyclic]
#
# For the selected policy of each algorithm (its first seed) and the supervised
# policy, a best response is trained: an online run whose completions are judged
# against samples of that policy, which stays fixed. The win rate that it reaches
# by the preference model, minus 1/2, is a lower bound of the exploitability.
#
# STEPS=200   updates of each best response, its budget.
#
# Repeat the command to resume.
set -euo pipefail
sweep=$(cd "$1" && pwd)
task=${2:-mini_tldr}
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh" "$sweep/best_responses"
STEPS=${STEPS:-200}
model=(--gin_file=gin/models/t5_tiny.gin)

# respond NAME: trains the best response to the run NAME of the sweep.
respond() {
  stage "$out" "$1" online --gin_file="gin/tasks/$task.gin" \
    --gin_file=gin/judges/pairwise_likelihood.gin --gin_file=gin/smoke.gin \
    --gin_file=gin/algorithms/best_response.gin \
    --gin.INITIAL_CHECKPOINT_PATH="$sweep/$1" \
    --gin.JUDGE_CHECKPOINT_PATH="$sweep/preference_model" \
    --gin.TRAIN_STEPS="$STEPS" --gin.LEARNING_RATE=6e-4 \
    --gin.WARMUP_STEPS=$((STEPS / 20)) --gin.LOG_PERIOD=$((STEPS / 10)) \
    --gin.EVAL_PERIOD=$((STEPS / 4)) --gin.EVAL_EXAMPLES=1024 \
    --gin.CHECKPOINT_PERIOD="$STEPS"
}

all() {
  local names
  mapfile -t names < <(python - "$sweep/report/sweep.json" <<'PYTHON'
import json
import sys

found = json.load(open(sys.argv[1]))
first = {run['algorithm']: run for run in found['runs'][::-1] if run['selected']}
print('supervised', *(run['name'] for run in first.values()), sep='\n')
PYTHON
  )
  for ((i = 0; i < ${#names[@]}; i += 2)); do
    both "respond ${names[i]@Q}" \
      "[ -z ${names[i + 1]:+1} ] || respond ${names[i + 1]:-}"
  done
  python - "$out" "${names[@]}" <<'PYTHON'
import json
import sys

from ipo_md.core import intervals

out, *names = sys.argv[1:]
for name in names:
  rows = map(json.loads, open(f'{out}/{name}/metrics.jsonl'))
  rate = [row['win_rate'] for row in rows if 'win_rate' in row][-1]
  low, high = intervals.score_interval(1024 * rate, 0, 1024)
  print(f'{name:50s} {rate:.3f}  [{low:.3f}, {high:.3f}]')
PYTHON
}

mkdir -p "$out/logs"
interruptible all
