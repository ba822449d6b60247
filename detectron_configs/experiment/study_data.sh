#!/bin/sh
# Make the data of the study (docs/study.md). Run from the project's root with its environment active:
#   sh detectron_configs/experiment/study_data.sh cpu    # writes data/study/cpu, some minutes on two cores
#   sh detectron_configs/experiment/study_data.sh gpu    # writes data/study/gpu
# Items lie anywhere in a bag's box (--on-matter 0), as when the study was made: its results hold for that rule.
# Makes three kinds of shards for pretraining, and shards for the probe. The probe's items are of other brands, and its
# bags of another simulation, than those for pretraining. Finished parts are not made again.
set -eu
# Scale items in the pairs to about their size in fine-tuning, in pixels (scans of 128 px on the CPU, 500 px on a GPU).
case "${1:-}" in
  cpu) scans=1500 trial_scans=1800 width=320 pairs=4000 frame=64 scale=1.8:3.2 ;;
  gpu) scans=20000 trial_scans=4000 width=500 pairs=50000 frame=500 scale=0.9:1.6 ;;
  *) echo "usage: sh $0 cpu|gpu" >&2; exit 2 ;;
esac
out=data/study/$1

# True if the table does not exist or is older than its source.
missing() { # TABLE SOURCE
  [ ! -f "$1" ] || [ "$2" -nt "$1" ]
}

simulation() { # NAME SCANS SEED [OPTION...]
  name=$1 of=$2 seed=$3; shift 3
  python -m pipeline.simulate --out "$out/$name" --scans "$of" --width "$width" --seed "$seed" "$@"
  if missing "$out/$name.regions.parquet" "$out/$name/simulation.json"; then
    python -m pipeline.regions --backgrounds "$out/$name/sixray" --out "$out/$name.regions.parquet"
  fi
  if missing "$out/$name.segments.parquet" "$out/$name/simulation.json"; then
    python -m pipeline.segments --annotations "$out/$name/pidray" --out "$out/$name.segments.parquet"
  fi
}

pairs() { # SIMULATION SEGMENTS SHARDS PAIRS BLEND SCALE [OPTION...]
  simulation=$1 segments=$2 shards=$3 number=$4 blend=$5 size=$6; shift 6
  python -m pipeline.synthesize --backgrounds "$out/$simulation/sixray" --regions "$out/$simulation.regions.parquet" \
    --segments "$out/$segments.parquet" --out "$out/$shards" --pairs "$number" --per-shard 250 --width "$frame" \
    --blend "$blend" --scale "$size" --on-matter 0 --if-changed rebuild "$@"
}

simulation scans "$scans" 0
simulation trial "$trial_scans" 1 --swap-brands
if missing "$out/crops.parquet" "$out/scans.regions.parquet"; then
  python -m pipeline.crops --backgrounds "$out/scans/sixray" --regions "$out/scans.regions.parquet" --scans 2000 \
    --per-scan 4 --out "$out/crops.parquet"
fi

pairs scans scans.segments alpha "$pairs" alpha "$scale"
pairs scans scans.segments ratio "$pairs" ratio "$scale"
pairs scans crops crops "$pairs" paste 0.5:1
# As a scanner shows items: Beer-Lambert law, with a coefficient of 1.
pairs trial trial.segments probe 3000 ratio "$scale" --coefficients 1:1
