#!/bin/sh
# Install Detectron2 into the active environment, from a wheel in the wheelhouse or from source. Never fails: without
# Detectron2 segloc uses torchvision's Mask R-CNN, and this script prints the reason.
#   DETECTRON2=0     do not install
#   WHEELHOUSE=DIR   where to look for detectron2-*.whl
set -u
without() { echo "Detectron2: $1; using torchvision's Mask R-CNN instead"; exit 0; }
works() { python -W ignore -c "import detectron2._C, detectron2.engine, detectron2.modeling" >/dev/null 2>&1; }

[ "${DETECTRON2:-1}" = 0 ] && without "not installed (DETECTRON2=0)"
works && { echo "Detectron2: already installed"; exit 0; }
for wheel in "${WHEELHOUSE:-}"/detectron2-*.whl; do
  [ -f "$wheel" ] || continue
  # A wheel works with one version of Python and torch; `works` checks the import.
  if python -m pip install --quiet --find-links "$WHEELHOUSE" "$wheel" 2>/dev/null && works; then
    echo "Detectron2: installed from $wheel"
    exit 0
  fi
  python -m pip uninstall --quiet --yes detectron2 2>/dev/null
done
echo "Detectron2: building the revision in setup.cfg from source (a few minutes)"
log=$(mktemp)
# Its setup imports torch; without build isolation it uses the installed torch.
if GIT_TERMINAL_PROMPT=0 python -m pip install --quiet --no-build-isolation --editable '.[detectron2]' >"$log" 2>&1 && works
then
  echo "Detectron2: built and installed"
else
  without "the build from source failed ($(grep -m 1 -i 'error\|fatal' "$log" | cut -c 1-120))"
fi
