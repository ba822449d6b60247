"""A toy data set in PIDray's layout: coloured rectangles and ellipses on white, with exact masks."""

import json

import cv2
import numpy as np
from pycocotools import mask as mask_api

CLASSES = ("Gun", "Knife", "Wrench")
CATEGORY_IDS = (1, 4, 7)  # neither contiguous nor from zero
COLOURS = ((40, 60, 200), (230, 140, 40), (60, 170, 60))


def draw_item(rng, image, position):
    """Draw one item; return its mask."""
    height, width = image.shape[:2]
    w, h = (int(v) for v in rng.integers(16, 30, 2))
    x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
    mask = np.zeros((height, width), np.uint8)
    if position == 1:
        cv2.ellipse(mask, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, 1, -1)
    else:
        mask[y : y + h, x : x + w] = 1
    image[mask == 1] = COLOURS[position]
    return mask


def rle(mask):
    encoded = mask_api.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def annotation(number, image_id, category_id, mask):
    ys, xs = np.nonzero(mask)
    x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "segmentation": rle(mask),
        "iscrowd": 0,
    }


def coco(images=(), annotations=()):
    """Make a COCO dict with the toy's classes in unsorted order, as in real files."""
    categories = [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
    return {"categories": categories[::-1], "images": list(images), "annotations": list(annotations)}


def write_split(file, folder, count, seed, width=80, height=56):
    """Write `count` scans of one item each; ids start at 0, as PIDray's do."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in range(count):
        image = np.full((height, width, 3), 255, np.uint8)
        position = image_id % len(CLASSES)
        annotations.append(annotation(image_id, image_id, CATEGORY_IDS[position], draw_item(rng, image, position)))
        name = f"scan {image_id:03d}.png"
        (folder / name).write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
    file.write_text(json.dumps(coco(images, annotations)))


def write_pidray(root, train=5, test=3):
    """Write a data set in the layout of PIDray's first release."""
    write_split(root / "annotations" / "xray_train.json", root / "train", train, seed=0)
    for seed, subset in enumerate(("easy", "hard", "hidden"), start=1):
        write_split(root / "annotations" / f"xray_test_{subset}.json", root / subset, test, seed)
    return root
