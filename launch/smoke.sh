#!/usr/bin/env bash
# Runs the whole chain on a CPU: bash launch/smoke.sh [DIR]
#
#   supervised fine-tuning -> judges -> online IPO, IPO-MD and offline IPO ->
#   side by side -> DIR/report/index.html and DIR/report/results.json
#
# SEED=0       drives initialisation, data order, dropout and samples.
# SMOKE=full   trains until results are clear.
# SMOKE=quick  takes a few steps in each stage and writes the report, in minutes.
#
# Repeat the command with the same DIR to resume. Ctrl-C saves first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/chain.sh" "${1:-out}"

settle "$out"
begin=$SECONDS
say "Running the chain in $out (SEED=$SEED SMOKE=$SMOKE), two stages at a time."
interruptible chain "$out"
say "Done in $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s."
summary "$out/report"
say "Open $out/report/index.html"
