#!/usr/bin/env bash
# Produces the evidence for the embedded task: bash launch/smoke_proof.sh [DIR]
#
# For each of SEEDS, runs the chain of smoke.sh, a sweep of offline IPO from which
# the best checkpoint by win rate on validation prompts is selected, and a control
# in which the judge always answers 1/2. Prints one table at the end. Takes about
# 15 minutes per seed on two cores. Repeat the command with the same DIR to
# resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/chain.sh" "${1:-out_proof}"

# offline DIR TAU LEARNING_RATE: trains one run of the sweep.
offline() {
  policy "$1" "offline_ipo_$2_$3" offline ipo --gin.TAU="$2" \
    --gin.LEARNING_RATE="$3"
}

# control DIR: trains with a judge that always answers 1/2.
control() {
  policy "$1" control online ipo --gin_file=gin/judges/indifferent.gin \
    --gin.JUDGE_CHECKPOINT_PATH=None
}

# best DIR: prints the run of the sweep with the highest win rate on validation.
best() {
  python - "$1" <<'PYTHON'
import pathlib
import sys

from ipo_md.core import metrics

rates = {}
for run in sorted(pathlib.Path(sys.argv[1]).glob('offline_ipo_*')):
  found = [m['win_rate'] for m in metrics.read_metrics(run).values() if 'win_rate' in m]
  rates[run.name] = max(found)
print(max(rates, key=rates.get))
PYTHON
}

proof() {
  for SEED in ${SEEDS:-101 102 103}; do
    dir=$out/seed_$SEED
    say "Seed $SEED into $dir."
    policies "$dir"
    both "offline ${dir@Q} 0.03 4e-4" "offline ${dir@Q} 0.1 4e-4"
    both "offline ${dir@Q} 0.3 4e-4" "offline ${dir@Q} 0.1 1e-4"
    control "$dir"
    side_by_side "$dir" "$(best "$dir")" ", 'control': '$dir/control'"
  done
}

interruptible proof
for SEED in ${SEEDS:-101 102 103}; do
  say "Seed $SEED, offline: $(best "$out/seed_$SEED")"
  summary "$out/seed_$SEED/report"
done
