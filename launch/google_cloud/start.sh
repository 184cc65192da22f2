# Fetches the commit on one worker of a slice and starts the command there in
# the background. launch/tpu.py puts the settings above these lines, copies the
# script into the bucket, and makes every worker run it over ssh.
#
#   JOB      folder in the bucket for the log and the state of this attempt
#   ARCHIVE  archive of the commit in the bucket
#   COMMIT   hash of the commit
#   COMMAND  words of the command

set -euo pipefail

# Names of hosts are random. Process 0 is worker 0 of slice 0.
slice=$(curl -sf -H 'Metadata-Flavor: Google' \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/tpu-env |
  sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]*\).*/\1/p") || slice=
host=${slice:+slice-$slice-}$HOSTNAME
home=$HOME/ipo_md
root=$home/code
mkdir -p "$root"

# A process that an earlier attempt left behind would still hold the chips.
if [ -f "$home/pid" ] && pid=$(cat "$home/pid") && kill -TERM "$pid" 2> /dev/null; then
  for _ in $(seq 60); do
    kill -0 "$pid" 2> /dev/null || break
    sleep 1
  done
  kill -KILL -- "-$pid" 2> /dev/null || true
fi

# The environment stays; it is installed again only if its requirements change.
find "$root" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
gcloud storage cp --quiet "$ARCHIVE" "$home/code.tar.gz"
tar -xzf "$home/code.tar.gz" -C "$root"
echo "$COMMIT" > "$root/COMMIT" # the run saves it in versions.json
cd "$root"

# The images of TPU VMs have an older Python.
if ! command -v python3.12 > /dev/null && ! command -v python3.11 > /dev/null; then
  python3 -m pip install --user --quiet uv
  "$HOME/.local/bin/uv" python install --quiet 3.12
  python=$("$HOME/.local/bin/uv" python find 3.12)
  export PATH=${python%/*}:$PATH
fi

printf '%s running 0\n' "$host" | gcloud storage cp --quiet - "$JOB/$host.state"
export EXTRAS=tpu
setsid nohup python3 launch/google_cloud/worker.py --setup --report="$JOB" --host="$host" \
  -- "${COMMAND[@]}" < /dev/null > "$home/worker.log" 2>&1 &
echo $! > "$home/pid"
echo "$host: started."
