"""Checkpoints: damage is found, and nothing in them takes more memory than the file."""

import io
import zipfile

import numpy as np
import pytest
import torch

from segloc.common.errors import InputError
from segloc.training import checkpoint


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"kind": "backbone", "backbone": {"w": torch.arange(512.0)}, "iteration": 3})
    return path


def test_a_flipped_bit_never_gives_other_values(saved, tmp_path):
    whole, expected = saved.read_bytes(), checkpoint.load(saved)
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, 8 * len(whole), 300).tolist():
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        (tmp_path / "b.pth").write_bytes(data)
        try:
            found = checkpoint.load(tmp_path / "b.pth")
        except InputError:
            refused += 1
        else:
            assert found.keys() == expected.keys()
            assert torch.equal(found["backbone"]["w"], expected["backbone"]["w"])
            assert found["iteration"] == 3
    assert refused > 150  # the rest hit padding


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "its tensors expand to 4000000000000 bytes"),
        (torch.zeros(3, device="meta"), "not a plain array"),
        (torch.eye(3).to_sparse(), "not a plain array"),
    ],
)
def test_a_tensor_larger_than_its_file_is_refused(tensor, message, tmp_path):
    torch.save({"format_version": 2, "backbone": {"w": [tensor]}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        checkpoint.read_any(tmp_path / "a.pth")


def test_tensors_may_share_memory_and_a_list_may_hold_itself(tmp_path):
    tensor, inside = torch.arange(6.0), []
    inside.append(inside)
    checkpoint.save(tmp_path / "a.pth", {"model": {"a": tensor}, "backbone": {"a": tensor}, "more": inside})
    assert torch.equal(checkpoint.load(tmp_path / "a.pth")["backbone"]["a"], tensor)


def test_compressed_records_are_refused(saved, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(10**6))
    (tmp_path / "b.pth").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="its records are larger than the file"):
        checkpoint.read_any(tmp_path / "b.pth")


@pytest.mark.parametrize("value", [-1, "7", 1.5, True, None, 2**70, "x" * 500])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(checkpoint.Damaged, match=r"its iteration is .{1,60}, not a whole number from 0 on"):
        checkpoint.count_in({"iteration": value}, "iteration", "here")
    with pytest.raises(checkpoint.Damaged, match="its steps is None"):
        checkpoint.count_in({"iteration": value}, "steps", "here")
    assert checkpoint.count_in({"iteration": 7}, "iteration", "here") == 7


@pytest.mark.parametrize("value", [None, 7, "a\0b", "\ud800"])
def test_text_is_text(value):
    with pytest.raises(InputError, match="here: its engine"):
        checkpoint.text_in({"engine": value}, "engine", "here")


def test_the_state_of_another_optimiser_is_refused():
    def stepped(size):
        layer = torch.nn.Linear(size, 2)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
        layer(torch.ones(size)).sum().backward()
        optimizer.step()
        return optimizer

    checkpoint.load_optimizer(stepped(3), stepped(3).state_dict(), "here")
    for state in (stepped(4).state_dict(), {}, None, [1], {"state": 3, "param_groups": []}):
        with pytest.raises(checkpoint.Damaged, match="here: the state of its optimiser does not fit"):
            checkpoint.load_optimizer(stepped(3), state, "here")


def test_numbers_that_are_not_finite_are_refused():
    checkpoint.require_finite({"a": [torch.ones(2), {"b": torch.tensor(1)}]}, "here")
    with pytest.raises(checkpoint.Damaged, match="here: has values that are not finite"):
        checkpoint.require_finite({"a": [torch.ones(2), {"b": torch.tensor(float("nan"))}]}, "here")


@pytest.mark.parametrize("version", [None, "3", 4, True, torch.tensor([1, 2]), [2]])
def test_a_format_is_a_number(version):
    assert not checkpoint.is_ours({"format_version": version})
    assert checkpoint.is_ours({"format_version": 3})


def test_values_beyond_float32_and_types_without_a_check_of_torch_are_seen():
    assert checkpoint.is_finite(torch.tensor([1e30], dtype=torch.float64))
    assert not checkpoint.is_finite(torch.tensor([1e300], dtype=torch.float64))
    assert checkpoint.is_finite(torch.ones(2).to(torch.float8_e4m3fn))


class _Long:
    """Pickles to `bytearray(length)`."""

    def __reduce__(self):
        return bytearray, (2_000_000_000,)


@pytest.mark.parametrize(
    ("content", "is_zip", "reason"),
    [
        (_Long(), True, "a bytearray"),
        (_Long(), False, "a bytearray"),
        ({k * (2**61 - 1) for k in range(1, 10_002)}, True, "more than 10000 large integers"),
    ],
)
def test_pickles_out_of_proportion_are_refused_before_they_are_loaded(tmp_path, content, is_zip, reason, monkeypatch):
    torch.save({"format_version": 2, "x": content}, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(InputError, match=reason):
        checkpoint.load(tmp_path / "x.pth")


@pytest.mark.parametrize("read", [checkpoint.count_in, checkpoint.text_in])
def test_a_tensor_in_place_of_a_field_is_refused_in_one_line(read):
    with pytest.raises(InputError, match="its field is tensor") as error:
        read({"field": torch.rand(5, 5)}, "field", "x.pth")
    assert "\n" not in str(error.value)
