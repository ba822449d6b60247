"""Code that both stages share: shard contract, files and stores, data sets, images, masks, command line. No torch."""

import os

# `images.MAX_PIXELS`, before OpenCV is imported: its decoders keep to it even where a file has two headers.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "178956970")
