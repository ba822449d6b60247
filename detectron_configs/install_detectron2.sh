#!/bin/sh
# Puts Detectron2 into the active environment if it can be had: already there, a wheel in the wheelhouse, or built from
# upstream. Never fails: without it torchvision's Mask R-CNN stands in, and the reason is said here.
#   DETECTRON2=0     do not even try
#   WHEELHOUSE=DIR   where to look for detectron2-*.whl
set -u
without() { echo "Detectron2: $1; torchvision's Mask R-CNN stands in for it"; exit 0; }
works() { python -W ignore -c "import detectron2._C, detectron2.engine, detectron2.modeling" >/dev/null 2>&1; }

[ "${DETECTRON2:-1}" = 0 ] && without "not wanted (DETECTRON2=0)"
works && { echo "Detectron2: already installed"; exit 0; }
for wheel in "${WHEELHOUSE:-}"/detectron2-*.whl; do
  [ -f "$wheel" ] || continue
  # A wheel fits one Python and one torch; the import below tells.
  if python -m pip install --quiet --find-links "$WHEELHOUSE" "$wheel" 2>/dev/null && works; then
    echo "Detectron2: installed from $wheel"
    exit 0
  fi
  python -m pip uninstall --quiet --yes detectron2 2>/dev/null
done
echo "Detectron2: building the upstream revision named in setup.cfg (a few minutes)"
log=$(mktemp)
# Its setup imports torch, so it is built against the torch that is installed here.
if GIT_TERMINAL_PROMPT=0 python -m pip install --quiet --no-build-isolation --editable '.[detectron2]' >"$log" 2>&1 && works
then
  echo "Detectron2: built and installed"
else
  without "upstream could not be built here ($(grep -m 1 -i 'error\|fatal' "$log" | cut -c 1-120))"
fi
