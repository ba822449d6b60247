from .common.contract import Pair, View
from .common.errors import InputError
from .common.images import read_image
from .common.masks import decode_rle
from .data.shard_folder import ShardFolder
from .detection.evaluation import evaluate_results
from .models.backbone import SegLocBackbone
from .models.initial_weights import load_backbone

__version__: str

__all__ = [
    "InputError",
    "Pair",
    "SegLocBackbone",
    "ShardFolder",
    "View",
    "decode_rle",
    "evaluate_results",
    "load_backbone",
    "read_image",
]
