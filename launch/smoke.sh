#!/usr/bin/env bash
# The whole chain on a CPU: bash launch/smoke.sh [DIR]
#
#   supervised fine-tuning -> judges -> online IPO, IPO-MD and offline IPO ->
#   side by side -> DIR/report/index.html and DIR/report/results.json
#
# SEED=0      drives initialisation, order of the data, dropout and samples.
# SMOKE=full  or quick: a few steps of everything and the report, in minutes.
#
# The same DIR again resumes, or says that all is done.
set -euo pipefail
out=${1:-out}
mkdir -p "$out/logs"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
source launch/chain.sh

settings="SEED=$SEED SMOKE=$SMOKE"
[ -f "$out/settings" ] || echo "$settings" > "$out/settings"
if [ "$settings" != "$(cat "$out/settings")" ]; then
  echo "$out holds a run with $(cat "$out/settings"), not $settings; choose another folder." >&2
  exit 1
fi
begin=$SECONDS
say "The chain into $out ($settings), two stages at a time on two cores."
chain "$out"
say "Done in $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s."
summary "$out/report"
say "Open $out/report/index.html"
