"""The single queue against one deque."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segloc.contrast.losses import info_nce
from segloc.contrast.metrics import Compared, training_metrics
from segloc.contrast.queues import QUEUES, ClassQueues
from segloc.models.backbone import LEVELS
from tests.segloc.contrast.test_queues import keys_of, numbered

single_queue = QUEUES["single"]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), num_classes=st.integers(1, 4), size=st.integers(1, 9))
def test_every_query_sees_the_last_k_keys_of_any_class(data, num_classes, size):
    label = st.integers(0, num_classes - 1)
    queues, expected = single_queue(num_classes, size, dim=2, levels=2), deque(maxlen=size)
    for numbers, labels in numbered(data.draw(st.lists(st.lists(label, max_size=12), max_size=8))):
        queues.enqueue(keys_of(numbers), torch.tensor(labels, dtype=torch.int64))
        expected.extend(zip(numbers, labels, strict=True))
        for query in range(num_classes):
            got = queues.negatives(query, 1)
            assert got[:, 0].tolist() == [number for number, _ in expected]
            assert (got[:, 1] == 1).all()
        mask = queues.valid(torch.arange(num_classes))
        assert (mask == mask[0]).all()
        stored = zip(queues.keys[0, :, 0].tolist(), queues.slot_labels().tolist(), strict=True)
        assert sorted(pair for pair in stored if pair[1] >= 0) == sorted(expected)
        assert mask[0].tolist() == (queues.slot_labels() >= 0).tolist()
        assert queues.fill().tolist() == [len(expected)]
        assert queues.full == (len(expected) == size)
        assert queues.keys.shape[1] <= max(2 * size, size + 1)


def test_only_the_single_queue_has_negatives_of_the_querys_class():
    labels = torch.tensor([0, 1, 0, 0, 2])
    single, classes = single_queue(3, 10, 2, 1), ClassQueues(3, 10, 2, 1)
    for queues in (single, classes):
        queues.enqueue(keys_of(range(1, 6), levels=1), labels)
    assert single.negatives(0, 0)[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert classes.negatives(0, 0)[:, 0].tolist() == [2, 5]


@pytest.mark.parametrize("num_classes", [1, 3])
def test_it_resumes_from_its_state(num_classes):
    whole, first = (single_queue(num_classes, 4, 2, 2) for _ in range(2))
    for queues in (whole, first):
        queues.enqueue(keys_of(range(7)), torch.arange(7) % num_classes)
    second = single_queue(num_classes, 4, 2, 2)
    second.load_state_dict(first.state_dict())
    for queues in (whole, second):
        queues.enqueue(keys_of([7, 8]), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(whole.negatives(0, 1), second.negatives(0, 1))
    assert whole.negatives(0, 1)[:, 0].tolist() == [5, 6, 7, 8]


def test_a_key_of_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match=r"class ids \[2\] are not in 0\.\.1"):
        single_queue(2, 4, 2, 1).enqueue(keys_of([1], levels=1), torch.tensor([2]))


def test_metrics_use_the_single_queue_only():
    """Keys of class 1 that the store still holds for class 0's own queue are older than the single queue."""
    queues = single_queue(2, 2, 2, len(LEVELS))
    queues.enqueue(
        torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2).expand(len(LEVELS), -1, -1), torch.tensor([1, 1, 0, 0])
    )
    query, label = torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    levels = [info_nce(query, query, bank, queues.valid(label), 1.0) for bank in queues.keys]
    found = training_metrics([Compared(levels, query.expand(len(LEVELS), 1, 2), label)], queues)
    assert found["class_accuracy"] == 0
    assert found["negative/p2"] == 0
    assert found["queue_fill"] == 2
