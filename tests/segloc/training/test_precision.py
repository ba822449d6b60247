import pytest
import torch

from segloc.common.errors import InputError
from segloc.training.precision import autocast, resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("precision", "native", "emulated", "expected"),
    [
        ("auto", True, True, "bfloat16"),
        ("auto", False, True, "float32"),
        ("bfloat16", False, True, "bfloat16"),
        ("float32", True, True, "float32"),
    ],
)
def test_a_gpu_uses_bfloat16_if_it_computes_in_it(precision, native, emulated, expected, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: emulated if including_emulation else native
    )
    assert resolve(precision, "optim.precision", CUDA) == expected


def test_a_gpu_without_bfloat16_does_not_go_on_with_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(InputError, match="the precision of the run is bfloat16, which this GPU does not have"):
        resolve("bfloat16", "the precision of the run", CUDA)


def test_a_cpu_computes_in_float32_unless_told_otherwise():
    assert [resolve(name, "", CPU) for name in ("auto", "float32", "bfloat16")] == ["float32", "float32", "bfloat16"]
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
