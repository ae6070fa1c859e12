"""Processes of one machine meet on its loopback interface, where nobody else can reach them.

Whoever reaches the store of a process group, or its sockets, takes part in it: neither asks who is there, and Python
objects travel as pickles, which can run code. PyTorch listens on every interface, whatever MASTER_ADDR says.
"""

import ipaddress
import os
import socket

import psutil
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented there
from torch.distributed.constants import default_pg_timeout
from torch.distributed.elastic.rendezvous import (
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

ADDRESS = "127.0.0.1"
BACKEND = "loopback"  # the name of our rendezvous backend for torchrun, beside its own "c10d" and "static"


def listening_store(port: int = 0) -> TCPStore:
    """A store for the processes of this machine, on a free port by default."""
    listener = socket.create_server((ADDRESS, port))
    return TCPStore(ADDRESS, listener.getsockname()[1], is_master=True, timeout=default_pg_timeout,
                    wait_for_workers=False, master_listen_fd=listener.detach())


def store_of_one_machine(rank: int) -> TCPStore | None:
    """The ranks' store on rank 0, where a loopback MASTER_ADDR says that all of them are on this machine.

    The ranks' later sockets, gloo's and NCCL's, then stay on loopback as well. None on several nodes, or where the
    launcher itself holds the store: PyTorch's own rendezvous serves these.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not _is_loopback(address):
        return None
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface())
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={_interface()}")  # without "=" every name that begins so
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        return None
    if rank == 0:
        return listening_store(port)
    return TCPStore(ADDRESS, port, is_master=False, timeout=default_pg_timeout)


class _LoopbackRendezvous(StaticTCPRendezvous):
    """Rendezvous for a single-node torchrun, which holds its ranks' store."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self.store = listening_store()
        super().__init__(ADDRESS, self.store.port, rank=0, world_size=1, run_id=parameters.run_id, timeout=0)

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(PrefixStore(self.run_id, self.store), self.rank, self.world_size,
                              RendezvousStoreInfo(self.master_addr, self.master_port))


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False  # a name


def _interface() -> str:
    """The loopback interface's name: lo on Linux."""
    return next(name for name, addresses in psutil.net_if_addrs().items()
                if any(address.address == ADDRESS for address in addresses))


rendezvous_handler_registry.register(BACKEND, _LoopbackRendezvous)
