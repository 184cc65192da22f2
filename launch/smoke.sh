#!/usr/bin/env bash
# The whole chain on a CPU: bash launch/smoke.sh [DIR]
#
#   supervised fine-tuning -> judges -> online IPO, IPO-MD and offline IPO ->
#   side by side -> DIR/report/index.html and DIR/report/results.json
#
# SEED=0      drives initialisation, order of the data, dropout and samples.
# SMOKE=full  or quick: a few steps of everything and the report, in minutes.
#
# The same DIR again resumes, or says that all is done. Ctrl-C saves first.
set -euo pipefail
out=${1:-out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
source launch/chain.sh

settle "$out"
begin=$SECONDS
say "The chain into $out (SEED=$SEED SMOKE=$SMOKE), two stages at a time on two cores."
interruptible chain "$out"
say "Done in $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s."
summary "$out/report"
say "Open $out/report/index.html"
