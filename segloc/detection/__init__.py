"""Fine-tuning's other half: detectors on the pretrained backbone, the data they see and how they are scored.

`coco` reads annotation files, `data` makes batches, `detector` is the one face of both engines (`engine_detectron2`,
`engine_torchvision`), `weights` loads what was pretrained, `trainer` trains, `predict` and `coco_eval` measure
(with `bootstrap` for intervals, `eval_tables` for people, `rle` to check masks first).
`recipe` and `settings` say what a recipe may hold.
"""
