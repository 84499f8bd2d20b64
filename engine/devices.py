"""The machine: device, precision, and the processes of one run."""

import os

import torch
import torch.distributed as dist

import cli
import data
from cli import UserError
from datasets.label_spaces import parse_sets
from datasets.streets.render import write_streets


def add_run_flags(parser):
    """The flags of the machine: where and how exactly to compute."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    group.add_argument(
        "--amp",
        default="auto",
        choices=("auto", "off", "bf16", "fp16"),
        help="autocast in training; auto: bf16 where the device computes in it, else off",
    )
    group.add_argument("--seed", type=cli.natural, default=0, help="of weights, order, augmentation and dropout")


# ---------------------------------------------------------------------------------------------------------------------
# Machine


def choose_device(name):
    """The torch.device for --device. Raises UserError for one this machine does not have."""
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32: a mantissa of 10 bits would make ties of scores
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}", "--device", "use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported", "--device", "use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            raise UserError(f"no device {name!r}: {count} CUDA devices here", "--device", "use --device auto or cpu")
        if device.index is None:
            device = torch.device("cuda", local_rank())
    return device


def describe_device(device):
    """One line that says what the run computes on."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def autocast_dtype(amp, device):
    """The dtype of --amp on this device, None for float32 throughout.

    Raises UserError for fp16 without CUDA (its gradients need the loss scaler, which is CUDA's).
    """
    if amp == "fp16" and device.type != "cuda":
        raise UserError("fp16 needs CUDA", "--amp", "use bf16 or off")
    if amp == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
        # Without these instructions a CPU emulates bf16, slower than float32.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def local_rank():
    """This process's number on its machine, as torchrun sets it; 0 alone."""
    return int(os.environ.get("LOCAL_RANK", 0))


def start_processes(device, one_size=True):
    """Join the other processes when started by torchrun: (rank, how many).

    one_size: images enter the network at one size, so that looking for the fastest convolutions pays.
    """
    torch.backends.cudnn.benchmark = one_size
    if "RANK" not in os.environ:
        return 0, 1
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def all_gather(value):
    """A list of every process's value (dicts, numbers, CPU tensors); [value] alone."""
    if not dist.is_initialized():
        return [value]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def open_dataset(dataset="streets", data_dir=None, **options):
    """`data.open_dataset`; the embedded streets are rendered where they are missing, once on each machine."""
    for name, root, _ in parse_sets(dataset, data_dir):
        if name == "streets" and not root.exists():
            if local_rank() == 0:
                print(f"rendering the embedded scenes into {root}")
                write_streets(root)
            all_gather(None)  # wait for it
    return data.open_dataset(dataset, data_dir, **options)


def all_reduce_mean(value, processes):
    """The mean over processes of a scalar tensor."""
    if processes > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= processes
    return value
