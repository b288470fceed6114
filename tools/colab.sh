#!/bin/sh
# Runs every notebook inside Colab's own image, as a reader would: the set-up cell installs modelsec from the repository.
# `.github/workflows/colab.yml` calls it; Colab's torch must be the same afterwards.
set -eu
book=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
# The chapters alone: beside the package, a notebook would find modelsec without installing it.
cp -R "$book/chapters" "$work/chapters"
cd "$work"

versions() {
    python3 -c 'import numpy, torch, torchvision as tv; print(numpy.__version__, torch.__version__, tv.__version__)'
}

before=$(versions)
python3 "$book/tools/slug.py" --setup-cell >cell.ipy
python3 -m IPython --no-banner cell.ipy
python3 -c 'import modelsec; print("modelsec", modelsec.__version__)'
after=$(versions)
if [ "$before" != "$after" ]; then
    echo "The set-up cell replaced numpy, torch or torchvision: $before became $after." >&2
    exit 1
fi

# With Colab's versions: is all that the book needs here, and are the stored models as accurate as recorded?
python3 -m modelsec doctor
python3 -m modelsec zoo verify

# The command of `make test`, one notebook at a time. The chapter on tools asks its reader to install ART; TensorFlow is there.
python3 -m pip install --quiet nbval adversarial-robustness-toolbox
OMP_NUM_THREADS=1 MODELSEC_PROGRESS=0 TQDM_DISABLE=1 python3 -m pytest -p no:cacheprovider \
    --nbval --nbval-lax --nbval-current-env --nbval-cell-timeout=180 chapters
