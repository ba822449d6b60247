import torch

from segloc.detection.shared_step import SharedUnreadable, add_up
from segloc.training.processes import ALONE, launch


def parameters_of(rank):
    """Gradients: both processes have that of 0, the first that of 1, the second that of 2; none has that of 3."""
    found = [torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(4)]
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    for number in (0, 1 + rank):
        found[number].grad = torch.arange(6.0).view(2, 3) + 10 * rank
    return [frozen, *found]


class Data:
    def __init__(self, unreadable):
        self.unreadable = unreadable


def exchange(folder, group):
    parameters, losses = parameters_of(group.rank), {"a": torch.tensor(1.5 + group.rank), "b": torch.tensor(0.25)}
    total, news = add_up(parameters, losses, group.rank, group)
    data = Data({7: "known before"})
    shared = SharedUnreadable(data, group)
    data.unreadable[group.rank] = f"found by {group.rank}"
    shared.tell(shared.news())
    gradients = [parameter.grad for parameter in parameters]
    torch.save((gradients, total, news, data.unreadable, shared.news()), f"{folder}/{group.rank}.pth")
    return 0


def test_two_processes_get_the_sums_of_both(tmp_path):
    assert launch(exchange, 2, str(tmp_path)) == 0
    six = torch.arange(6.0).view(2, 3)
    for rank in range(2):
        gradients, losses, news, unreadable, left = torch.load(tmp_path / f"{rank}.pth")
        assert gradients[0] is gradients[4] is None, "the optimiser skips a parameter without gradient"
        assert torch.equal(gradients[1], 2 * six + 10)
        assert torch.equal(gradients[2], six)
        assert torch.equal(gradients[3], six + 10)
        assert losses == {"a": 4.0, "b": 0.5}
        assert news == 1
        assert unreadable == {7: "known before", 0: "found by 0", 1: "found by 1"}
        assert not left


def test_one_process_keeps_its_own():
    parameters = parameters_of(0)
    before = [parameter.grad for parameter in parameters]
    losses = {"a": torch.tensor(2.0)}
    assert add_up(parameters, losses, 3, ALONE) == (losses, 3)
    assert [parameter.grad for parameter in parameters] == before
