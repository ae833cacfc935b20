"""The processes that train one model together, one for each GPU: how they find each other, and how they agree.

Whatever is decided from what only one process knows (a file, a clock, free memory) is decided by the first and told
to the others, because a collective that one of them leaves out would hold up the rest for ever. In a process that
trains alone all of this is idle.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from quantstudio.core.section import Plain

HERE = "127.0.0.1"
_PATIENCE = timedelta(days=1)
"""Of one process for another. Who is dead is found out by watching processes (`crew`), not by a clock."""
_FOUND_BY_ACCELERATE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NETWORKS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_NO_SHORT_WAY = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")


class Seat(Plain):
    """A process's place among those that train together."""

    rank: int
    """0 for the process that reports, writes, and has started the others; also the number of its GPU."""
    count: int
    port: int
    """On this machine, where the first process tells the others how to reach each other."""
    device: str
    """cpu or cuda."""


def open_store(count: int) -> Any:
    """Where the processes find each other, at a free port that cannot be reached from other machines."""
    listening = socket.create_server((HERE, 0))
    return distributed.TCPStore(  # type: ignore[attr-defined]
        HERE,
        listening.getsockname()[1],
        count,
        is_master=True,
        timeout=_PATIENCE,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


@contextmanager
def joined(seat: Seat, store: Any = None) -> Iterator[None]:
    """Be one of the group in the body. `store`: in the first process what `open_store` has given.

    Waits for the others. Raises RuntimeError when one of them goes away.
    """
    if store is None:
        store = distributed.TCPStore(HERE, seat.port, seat.count, is_master=False, timeout=_PATIENCE)  # type: ignore[attr-defined]
    on_gpu = seat.device == "cuda"
    with _variables(seat):
        if on_gpu:
            torch.cuda.set_device(seat.rank)
            _avoid_what_hangs()
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=seat.rank,
            world_size=seat.count,
            timeout=_PATIENCE,
            device_id=torch.device("cuda", seat.rank) if on_gpu else None,
        )
        try:
            yield
        except BaseException:
            give_up()  # leaving in good order would wait for collectives that others never join
            raise
        finally:
            distributed.destroy_process_group()


def give_up() -> None:
    """End every collective that waits, from whatever thread; the group is of no more use."""
    if together() and distributed.get_backend() == "nccl":  # gloo notices by itself that a process is gone
        distributed.group.WORLD.abort()  # type: ignore[union-attr]


def together() -> bool:
    """Whether this process is one of several that train together."""
    return distributed.is_available() and distributed.is_initialized()


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if together() else 1


def is_first() -> bool:
    """Whether this process reports and writes."""
    return not together() or distributed.get_rank() == 0


def agreed(*numbers: float) -> tuple[float, ...]:
    """The numbers as the first process has them. Every process must call this."""
    if not together():
        return numbers
    told = torch.tensor(numbers, dtype=torch.float64, device=_device())
    distributed.broadcast(told, 0)
    return tuple(told.tolist())


def meet() -> None:
    """Wait until every process is here. Raises RuntimeError when one is gone.

    A GPU that waited in vain leaves anything in its memory: nothing that was gathered may be kept before this.
    """
    agreed(0.0)


def largest(*numbers: float) -> tuple[float, ...]:
    """The largest of each number over all processes. Every process must call this."""
    if not together():
        return numbers
    told = torch.tensor(numbers, dtype=torch.float64, device=_device())
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return tuple(told.tolist())


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


@contextmanager
def _variables(seat: Seat) -> Iterator[None]:
    """Tell accelerate, which asks the environment; processes that are started later must not be told."""
    from accelerate.state import AcceleratorState

    before = {name: os.environ.get(name) for name in (*_FOUND_BY_ACCELERATE, *_NETWORKS, *_NO_SHORT_WAY)}
    rank, count = str(seat.rank), str(seat.count)
    os.environ |= dict(zip(_FOUND_BY_ACCELERATE, (rank, rank, count, count, HERE, str(seat.port)), strict=True))
    if sys.platform == "linux":  # the machine's name may lead anywhere, or nowhere
        for name in _NETWORKS:
            os.environ.setdefault(name, "lo")
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _avoid_what_hangs() -> None:
    """GPUs that say they can reach each other's memory and cannot; accelerate's launcher does the same."""
    from accelerate.utils import check_cuda_p2p_ib_support

    if not check_cuda_p2p_ib_support():
        for name in _NO_SHORT_WAY:
            os.environ.setdefault(name, "1")
