#!/usr/bin/env bash
# Gathers what a GPU machine without network lacks into packed/ (which git ignores), as wheels at the versions of
# requirements.lock. The machine is expected to have PyTorch, torchvision, transformers, accelerate, timm, pyarrow,
# scikit-learn and jaxtyping.
#
#   benchmarks/gpu/pack.sh          # for Python 3.12 on x86-64
#   benchmarks/gpu/pack.sh 3.11
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
version=${1:-3.12}
lacking="annotated-types click diffusers ftfy importlib-metadata open-clip-torch pydantic pydantic-core rich wcwidth"

specs=()
for name in $lacking; do
  specs+=("$(grep -E "^${name//-/[-_]}==" "$root/requirements.lock")")
done
rm -rf "$here/packed"
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version "$version" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  --dest "$here/packed" "${specs[@]}"
git -C "$root" describe --always --dirty --abbrev=40 >"$here/packed/commit.txt"
du -ch "$here"/packed/*.whl
ours=$(cd "$root" && git ls-files -z | xargs -0 du -ck | tail -n 1 | cut -f 1)
total=$(( ours + $(du -sk "$here/packed" | cut -f 1) ))
echo "the repository's files and the wheels together: $(( total / 1024 )) MiB (at most 60)"
test "$total" -le $(( 60 * 1024 ))
