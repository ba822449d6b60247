import numpy as np
import pytest
import torch

from segloc.probing import classifiers


def clusters(count, classes=4, dim=8, spread=0.3, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim)) * 2
    labels = rng.integers(classes, size=count)
    features = centres[labels] + rng.normal(size=(count, dim)) * spread + shift
    return torch.from_numpy(features), torch.from_numpy(labels)


def brute_force(train, labels, test, classes):
    """The vote of Wu et al., one test feature at a time, with a full sort."""
    predicted = []
    for feature in test:
        cosine = train @ feature / np.linalg.norm(train, axis=1) / np.linalg.norm(feature)
        votes = np.zeros(classes)
        for i in np.argsort(-cosine)[: classifiers.NEIGHBOURS]:
            votes[labels[i]] += np.exp(cosine[i] / 0.07)
        predicted.append(votes.argmax())
    return predicted


@pytest.mark.parametrize("count", [5, 60])
def test_neighbours_vote_as_in_brute_force(count):
    """With overlapping classes, so that the weights of the votes matter, and with fewer features than neighbours."""
    train, labels = clusters(count, spread=2.5)
    test, truth = clusters(80, spread=2.5, seed=1)
    predicted = classifiers.nearest_neighbours(train, labels, test, 4)
    assert predicted.tolist() == brute_force(train.numpy(), labels.numpy(), test.numpy(), 4)
    assert not torch.equal(predicted, truth)


def test_one_close_neighbour_outvotes_many_far_ones():
    """Nineteen neighbours at cosine 0.5 weigh exp(0.5 / 0.07) each, about 1,265 times less than one at cosine 1."""
    far = torch.tensor([0.5, 0.75**0.5]).repeat(19, 1)
    train = torch.cat([far, torch.tensor([[3.0, 0.0]])])
    labels = torch.tensor([0] * 19 + [1])
    assert classifiers.nearest_neighbours(train, labels, torch.tensor([[0.1, 0.0]]), 2).tolist() == [1]


def test_length_of_features_does_not_matter_to_neighbours():
    train, labels = clusters(60, spread=2)
    test, _ = clusters(40, spread=2, seed=1)
    lengths = torch.linspace(0.1, 50, 60, dtype=torch.float64)[:, None]
    expected = classifiers.nearest_neighbours(train, labels, test, 4)
    assert torch.equal(classifiers.nearest_neighbours(train * lengths, labels, test / 7, 4), expected)


@pytest.mark.parametrize("classify", [classifiers.nearest_neighbours, classifiers.linear])
def test_separable_clusters_are_classified_and_noise_is_not(classify):
    train, labels = clusters(200)
    test, truth = clusters(100, seed=1)
    assert torch.equal(classify(train, labels, test, 4), truth)
    noise, other = torch.randn(200, 8, dtype=torch.float64), torch.randn(2000, 8, dtype=torch.float64)
    answers = torch.arange(2000) % 4
    assert float((classify(noise, labels, other, 4) == answers).double().mean()) == pytest.approx(0.25, abs=0.05)


def test_linear_reaches_the_minimum_of_its_loss():
    """The gradient of the loss, computed in NumPy from the predicted probabilities, is zero at the minimum."""
    train, labels = clusters(150, classes=3, spread=2.5)
    test, _ = clusters(400, classes=3, spread=2.5, seed=1)
    x = (train - train.mean(0)) / train.std(0, correction=0)
    x, y = x.numpy(), np.eye(3)[labels]
    weight, bias = np.zeros((8, 3)), np.zeros(3)
    for _ in range(5000):
        logits = x @ weight + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        residual = p / p.sum(1, keepdims=True) - y
        weight -= 0.5 * (x.T @ residual / len(x) + classifiers.L2 * weight)
        bias -= 0.5 * residual.mean(0)
    scaled = ((test - train.mean(0)) / train.std(0, correction=0)).numpy()
    expected = (scaled @ weight + bias).argmax(1)
    assert (classifiers.linear(train, labels, test, 3).numpy() == expected).mean() > 0.99


def test_linear_does_not_depend_on_scale_shift_or_constant_features():
    train, labels = clusters(100, spread=2.5)
    test, _ = clusters(300, spread=2.5, seed=1)
    expected = classifiers.linear(train, labels, test, 4)
    scale = torch.logspace(-3, 4, 8, dtype=torch.float64)
    changed = [torch.cat([x * scale + 5, torch.full((len(x), 1), 0.1 + i)], 1) for i, x in enumerate((train, test))]
    assert (classifiers.linear(changed[0], labels, changed[1], 4) == expected).double().mean() > 0.99
