import pytest

pytest.importorskip("detectron2", reason="the benchmark compares with Detectron2's own model")

from benchmarks.detector import zoo_config


def test_the_peer_is_the_model_zoos():
    from detectron2 import model_zoo

    try:
        config = model_zoo.get_config("Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml")
    except RuntimeError:
        pytest.skip("this Detectron2 came without its model zoo's files")
    config.MODEL.RESNETS.DEPTH = 101
    config.MODEL.WEIGHTS = ""
    assert zoo_config().MODEL == config.MODEL
