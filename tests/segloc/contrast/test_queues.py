"""The class queues against a simple implementation: one deque per class."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segloc.contrast.queues import ClassQueues


class Deques:
    """Queue c: the last K keys whose class is not c."""

    def __init__(self, num_classes, size):
        self.queues = [deque(maxlen=size) for _ in range(num_classes)]

    def enqueue(self, numbers, labels):
        for number, label in zip(numbers, labels, strict=True):
            for other, queue in enumerate(self.queues):
                if other != label:
                    queue.append(number)


def keys_of(numbers, levels=2):
    """A key contains its arrival number and level, so that sets can be compared exactly."""
    numbers = torch.as_tensor(numbers, dtype=torch.float32)
    return torch.stack([torch.stack([numbers, torch.full_like(numbers, level)], 1) for level in range(levels)])


def check_equal(queues, deques, num_classes, levels=2):
    for label in range(num_classes):
        for level in range(levels):
            got = queues.negatives(label, level)
            assert got[:, 0].tolist() == list(deques.queues[label])
            assert (got[:, 1] == level).all()
        mask = queues.valid(torch.tensor([label]))[0]
        assert sorted(queues.keys[0, mask, 0].tolist()) == sorted(deques.queues[label])
    assert queues.fill().tolist() == [len(queue) for queue in deques.queues]
    # Arrival numbers count from 1.
    ages = [queues.arrived - queue[0] + 1 if queue else 0 for queue in deques.queues]
    assert queues.age().tolist() == ages


def numbered(batches):
    """Pair each batch of labels with the arrival numbers of its keys."""
    start = 1
    for labels in batches:
        yield list(range(start, start + len(labels))), labels
        start += len(labels)


def feed(queues, deques, numbers, labels):
    queues.enqueue(keys_of(numbers), torch.tensor(labels, dtype=torch.int64))
    deques.enqueue(numbers, labels)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), num_classes=st.integers(2, 5), size=st.integers(1, 9))
def test_equal_to_deques_on_any_stream(data, num_classes, size):
    label = st.integers(0, num_classes - 1)
    batches = data.draw(st.lists(st.lists(label, max_size=12), max_size=12))
    queues, deques = ClassQueues(num_classes, size, 2, 2), Deques(num_classes, size)
    for numbers, labels in numbered(batches):
        feed(queues, deques, numbers, labels)
        check_equal(queues, deques, num_classes)
        assert queues.keys.shape[1] <= max(2 * size, size + 1)


def streams(rng, classes=12, length=60, batch=7):
    def chunks(labels):
        return [labels[i : i + batch].tolist() for i in range(0, len(labels), batch)]

    n = length * batch
    skew = rng.choice(classes, n, p=np.arange(1, classes + 1)[::-1] / np.arange(1, classes + 1).sum())
    return {
        "uniform": chunks(rng.integers(classes, size=n)),
        "skewed": chunks(skew),
        "one class only": chunks(np.full(n, 3)),
        "runs of one class": chunks(np.repeat(rng.integers(classes, size=n // 50 + 1), 50)[:n]),
    }


@pytest.mark.parametrize("name", ["uniform", "skewed", "one class only", "runs of one class"])
def test_twelve_classes_with_wrap_around_and_resume(name):
    batches = streams(np.random.default_rng(0))[name]
    queues, deques = ClassQueues(12, 40, 2, 2), Deques(12, 40)
    for step, (numbers, labels) in enumerate(numbered(batches)):
        feed(queues, deques, numbers, labels)
        check_equal(queues, deques, 12)
        if step % 20 == 10:
            resumed = ClassQueues(12, 40, 2, 2)
            resumed.load_state_dict(queues.state_dict())
            queues = resumed
    assert queues.keys.shape[1] <= 80


@pytest.mark.parametrize("name", ["uniform", "skewed", "runs of one class"])
def test_a_resumed_store_uses_the_same_slots(name):
    queues, resumed = ClassQueues(12, 40, 2, 2), ClassQueues(12, 40, 2, 2)
    for step, (numbers, labels) in enumerate(numbered(streams(np.random.default_rng(1))[name])):
        if step == 23:
            resumed.load_state_dict(queues.state_dict())
        for store in (queues, resumed)[: 1 if step < 23 else 2]:
            store.enqueue(keys_of(numbers), np.array(labels))
    for label in range(12):
        mask = queues.valid(torch.tensor([label]))[0]
        assert torch.equal(mask, resumed.valid(torch.tensor([label]))[0])
        assert torch.equal(queues.keys[:, mask], resumed.keys[:, mask])
    assert torch.equal(queues.slot_labels(), resumed.slot_labels())


def test_worst_case_needs_twice_the_size():
    queues = ClassQueues(3, 10, 2, 2)
    queues.enqueue(keys_of(range(1, 11)), torch.zeros(10, dtype=torch.int64))
    queues.enqueue(keys_of(range(11, 111)), torch.ones(100, dtype=torch.int64))
    assert len(queues.state_dict()["labels"]) == 20
    assert queues.negatives(1, 0)[:, 0].tolist() == list(range(1, 11))
    assert queues.negatives(2, 0)[:, 0].tolist() == list(range(101, 111))


def test_unfilled_slots_are_never_negatives():
    queues = ClassQueues(2, 50, 2, 2)
    queues.enqueue(keys_of([1, 2, 3]), torch.tensor([0, 1, 1]))
    assert queues.valid(torch.tensor([0, 1])).sum(1).tolist() == [2, 1]
    assert not queues.full


@pytest.mark.parametrize(
    ("keys", "labels"), [(torch.zeros(2, 3, 2), [0, 1]), (torch.zeros(1, 1, 2), [0]), (torch.zeros(2, 1, 2), [7])]
)
def test_wrong_shapes_and_class_ids_are_refused(keys, labels):
    queues = ClassQueues(3, 4, 2, 2)
    with pytest.raises(ValueError, match=r"keys have shape|class ids"):
        queues.enqueue(keys, torch.tensor(labels))
