#!/usr/bin/env bash
# Python 3.11 and what is named, such as ".[dashboard,s3]", as locked. `ray up` runs it on each node, and again when the
# code has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v python3.11 >/dev/null; then
  # the clouds' Ubuntu has another Python; on hosts without sudo an administrator installs it
  sudo add-apt-repository -y ppa:deadsnakes/ppa
  sudo apt-get -o DPkg::Lock::Timeout=300 install -y -qq python3.11-venv
fi
if ! ldconfig -p | grep -q libGL.so.1; then # what the simulator links to
  sudo apt-get -o DPkg::Lock::Timeout=300 install -y -qq libgl1 libglib2.0-0 libvulkan1 libxext6
fi
[ -d venv ] || python3.11 -m venv venv
venv/bin/pip install --quiet --constraint constraints.txt --upgrade pip
venv/bin/pip install --quiet --constraint constraints.txt "$@"
