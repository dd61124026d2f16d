#!/usr/bin/env bash
# Installs what pack.sh gathered into a folder of its own, measures, and writes result.json and result.md.
#
#   benchmarks/gpu/run.sh [--minutes 8] [--out DIR] [--only sampling guidance] [--tiny]
#
# Another interpreter than python3: PYTHON=… benchmarks/gpu/run.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G "$here/packed/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$here"/packed/*.whl
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
PYTHONPATH="$site:$root/platform:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$python" -P -m gpu.measure "$@"
