"""Recognise files that are no checkpoint of torch, to say what they are and what to do."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Rar!": "rar",
}
_TENSORFLOW = re.compile(r"\.(pb|tflite|h5|keras|index|meta)$|\.data-\d+-of-\d+$")


def file_kind(path: Path, data: bytes) -> str:
    """Describe a file that torch could not read as data, and what to do with it; empty if it is of no known kind.

    Args:
        path: the file.
        data: its content.
    """
    start = data[:512].lstrip()
    if not start:
        return "an empty file; copy or download it again"
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; get the file with `git lfs pull`"
    if start[:20].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, such as the error of a download; download the file again"
    if start[:1] in (b"{", b"[") and not _is_safetensors(data):
        return "a text file (JSON); give the file of the weights"
    if _is_safetensors(data):
        save = f"torch.save(safetensors.torch.load_file({str(path)!r}), 'weights.pth')"
        return f"a file of safetensors; convert it with `import safetensors.torch; {save}`"
    for magic, name in _COMPRESSED.items():
        if data.startswith(magic):
            return f"a file compressed with {name}; unpack it first"
    if data.startswith(b"\x89HDF") or _TENSORFLOW.search(path.name):
        return "a file of TensorFlow or Keras, which is not supported; use weights of PyTorch"
    if path.suffix == ".onnx":
        return "an ONNX file, which is not supported; use weights of PyTorch"
    return _zip_kind(path, data) if data.startswith(b"PK") else _pickle_kind(data)


def more_than_data(message: str) -> str:
    """Say what a checkpoint contains besides data, from torch's message."""
    names = re.findall(r"GLOBAL ([\w.]+)", message)
    return f"contains Python objects ({', '.join(names)}), not only data" if names else "damaged, or more than data"


def _is_safetensors(data: bytes) -> bool:
    """Whether the file starts with the length of a JSON header, and the header."""
    return 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8 and data[8:9] == b"{"


def _zip_kind(path: Path, data: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a file that was cut short; copy or download it again"
    if any(name.endswith("/constants.pkl") for name in names):
        save = f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        return f"a TorchScript archive; if you trust it, take its weights out with `{save}`"
    if any(name.endswith(".npy") for name in names):
        return "an archive of numpy arrays, which is not supported; use weights of PyTorch"
    if not any(name.endswith("data.pkl") for name in names):
        return "a ZIP archive; unpack it first"
    return ""


def _pickle_kind(data: bytes) -> str:
    """Describe a pickle that `torch.save` did not write; old files of torch begin with their magic number."""
    if data[:1] != b"\x80" or b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19" in data[:64]:
        return ""
    return (
        "a pickle, such as a model of Detectron2 or numpy arrays, which can run code when it is loaded; use a state "
        "dict that torch.save wrote"
    )
