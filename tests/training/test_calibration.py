"""The measurement of a step leaves no trace."""

import time

import torch

from superblock.training.calibration import TIMED, WARM_UP, seconds_per_step


def test_model_and_optimizer_are_as_before() -> None:
    model = torch.nn.Linear(4, 4)
    model.register_buffer("moved", torch.zeros(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def step(batch: torch.Tensor) -> None:
        model(batch).square().sum().backward()
        optimizer.step()
        model.moved += 1
        time.sleep(0.002)

    seconds = seconds_per_step(step, [torch.ones(2, 4)] * (WARM_UP + TIMED), model, optimizer)
    assert 0.002 <= seconds < 1
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_slow_first_steps_do_not_count() -> None:
    model = torch.nn.Linear(1, 1)
    delays = iter([0.05] * WARM_UP + [0.001] * TIMED)
    optimizer = torch.optim.SGD(model.parameters())
    seconds = seconds_per_step(lambda batch: time.sleep(next(delays)), range(WARM_UP + TIMED), model, optimizer)
    assert seconds < 0.04
