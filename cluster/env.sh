# shellcheck shell=bash
# Sourced at the end of a node's ~/.bashrc, because `ray up` and `ray submit` run all they do in its login shell.
export PATH="$HOME/offrl-ray/venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Ray opens its session folders to everybody, so they lie in a private one; a short path, because sockets lie there too
export RAY_TMPDIR="${RAY_TMPDIR:-/tmp/offrl-ray-$(id -un)}"
[ -d "$RAY_TMPDIR" ] || mkdir -m 700 "$RAY_TMPDIR"

# `ray up` and `ray down` run `ray stop`, which ends every Ray of this user on the host; here it ends this one alone
ray() {
  [ -O "$RAY_TMPDIR" ] || { echo "$RAY_TMPDIR is not yours: export another RAY_TMPDIR in ~/.bashrc" >&2; return 1; }
  [ "${1-}" = stop ] || { command ray "$@"; return; }
  _of_this_ray '^[^ ]*/raylet/raylet' | xargs -r kill # first, and gently: with it go its workers
  for _ in $(seq 20); do
    [ -n "$(_of_this_ray '^[^ ]*/raylet/raylet')" ] || break
    sleep 0.5
  done
  _of_this_ray '^[^ ]*(/gcs/gcs_server|python[^ ]* .*(/ray/(dashboard|autoscaler|_private)/|ray[.]util[.]client))' |
    xargs -r kill -KILL
}

_of_this_ray() {
  local pid
  for pid in $(pgrep -u "$(id -u)" -f -- "$1"); do
    if grep -qzxF "RAY_TMPDIR=$RAY_TMPDIR" "/proc/$pid/environ" 2>/dev/null; then echo "$pid"; fi
  done
}
