"""Where the fine-tuning recipes are."""

from tests.imports import ROOT

RECIPES = ROOT / "detectron_configs" / "finetune"
DEMO = RECIPES / "demo_r18.yaml"
