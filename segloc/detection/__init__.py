"""Fine-tuning's other half: detectors on the pretrained backbone, the data they see and how they are scored.

`splits` checks the sets to train and test on, `data` makes batches, `detector` is the one face of both engines
(`engine_detectron2`, `engine_torchvision`), `weights` loads what was pretrained, `trainer` trains, `predict` and
`coco_eval` measure (with `bootstrap` for intervals, `eval_tables` for people).
"""
