"""Devices and precision are refused in words."""

import pytest
import torch

from cli import UserError
from engine.devices import autocast_dtype, choose_device

CPU = torch.device("cpu")


def test_devices_and_precision_are_refused_in_words():
    for name in ("gpu", "mps", "cuda:x"):
        with pytest.raises(UserError, match="--device"):
            choose_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices"):
            choose_device("cuda")
        assert choose_device("auto") == CPU
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        autocast_dtype("fp16", CPU)
    assert autocast_dtype("off", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
