#!/usr/bin/env bash
# Python 3.11 and what is named, such as ".[dashboard,s3]", as locked. `ray up` runs it on each node, and again when the
# code has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v python3.11 >/dev/null; then
  # the clouds' Ubuntu has another Python; on hosts without sudo an administrator installs it
  sudo add-apt-repository -y ppa:deadsnakes/ppa
  sudo apt-get install -y -qq python3.11-venv
fi
[ -d venv ] || python3.11 -m venv venv
venv/bin/pip install --quiet --constraint constraints.txt --upgrade pip
venv/bin/pip install --quiet --constraint constraints.txt "$@"
