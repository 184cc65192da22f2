# On one worker of a slice: fetches the commit, then runs the command in the
# background. launch/tpu.py puts the settings above these lines, copies the whole
# into the bucket, and has every worker run it by ssh.
#
#   JOB      folder in the bucket for log and state of this attempt
#   ARCHIVE  files of the commit, in the bucket
#   COMMIT   its hash
#   COMMAND  the words to run

set -euo pipefail
home=$HOME/ipo_md
root=$home/code
mkdir -p "$root"

# What an earlier attempt left behind, its peers gone, still holds the chips.
if [ -f "$home/pid" ] && pid=$(cat "$home/pid") && kill -TERM "$pid" 2> /dev/null; then
  for _ in $(seq 60); do
    kill -0 "$pid" 2> /dev/null || break
    sleep 1
  done
  kill -KILL -- "-$pid" 2> /dev/null || true
fi

# The environment stays: it is made again only if its requirements changed.
find "$root" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
gcloud storage cp --quiet "$ARCHIVE" "$home/code.tar.gz"
tar -xzf "$home/code.tar.gz" -C "$root"
mkdir -p "$root/.git"
echo "$COMMIT" > "$root/.git/HEAD" # versions.json names it
cd "$root"

# Images of TPU VMs come with an older Python.
if ! command -v python3.12 > /dev/null && ! command -v python3.11 > /dev/null; then
  python3 -m pip install --user --quiet uv
  "$HOME/.local/bin/uv" python install --quiet 3.12
  python=$("$HOME/.local/bin/uv" python find 3.12)
  export PATH=${python%/*}:$PATH
fi

printf '%s running 0\n' "$HOSTNAME" | gcloud storage cp --quiet - "$JOB/$HOSTNAME.state"
export EXTRAS=tpu
setsid nohup python3 launch/google_cloud/worker.py --setup --report="$JOB" --host="$HOSTNAME" \
  -- "${COMMAND[@]}" < /dev/null > "$home/worker.log" 2>&1 &
echo $! > "$home/pid"
echo "$HOSTNAME: started."
