# Creates or reuses .venv with the tested versions:
#
#   EXTRAS=... source launch/setup.sh
#
# It needs only bash and Python 3.11 or 3.12. It takes two to five minutes the
# first time, and no time later unless setup.py, constraints.txt or EXTRAS
# change.

_setup() {
  local extras=${1:-} root stamp found python=
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  for found in python3.12 python3.11 python3; do
    if "$found" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      python=$found
      break
    fi
  done
  if [ -z "$python" ] && [ ! -x "$root/.venv/bin/python" ]; then
    echo "Python 3.11 or 3.12 is needed; this machine has: $(python3 --version 2>&1)" >&2
    return 1
  fi
  stamp=$(cat "$root/setup.py" "$root/constraints.txt" | cksum | cut -d' ' -f1)
  if ! grep -qs "^$stamp \[.*$extras" "$root/.venv/installed"; then
    echo "Installing into $root/.venv (3.3 GB; two to five minutes) ..."
    local start=$SECONDS
    # A .venv without pip is left over from a failed attempt and is completed.
    "$root/.venv/bin/python" -m pip --version > /dev/null 2>&1 ||
      "$python" -m venv "$root/.venv" || return 1
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint "$root/constraints.txt" --editable "$root${extras:+[$extras]}" || return 1
    grep -qs "^$stamp " "$root/.venv/installed" || : > "$root/.venv/installed"
    echo "$stamp [$extras]" >> "$root/.venv/installed"
    echo "Installed in $((SECONDS - start)) s."
  fi
  export PATH="$root/.venv/bin:$PATH"
  # Without huge pages, page faults take a quarter of a small model's training
  # step. glibc before 2.35 and other systems ignore this setting.
  export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
  export TF_CPP_MIN_LOG_LEVEL=3
}

_setup "${EXTRAS:-}"
