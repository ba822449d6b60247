"""Fine-tuning and evaluation of detectors on the pretrained backbone.

`splits` checks the training and test sets, `data` makes batches. `detector` is the interface of both engines
(`engine_detectron2`, `engine_torchvision`). `weights` loads pretrained weights, `trainer` trains. `predict` and
`coco_eval` evaluate, `bootstrap` computes confidence intervals, `eval_tables` writes the tables.
"""
