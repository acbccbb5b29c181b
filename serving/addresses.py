"""Where a server listens: names become numbers, ports are tried, and who holds one is named.

Triton takes no host names (it binds the broadcast address for one) and spells IPv6 in two ways. What cannot be listened
on is refused here, before models are loaded; a port that another server of ours holds is said to be that.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Mapping

import psutil

from serving.environment import ServerEnvironmentError


class AddressError(ServerEnvironmentError):
    """A host that is no address of this machine."""


class PortInUse(ServerEnvironmentError):
    """Another process listens on a port that the server was told to use."""


def resolve(host: str) -> str:
    """The numeric address of a host name or of an address, in brackets or not; IPv4 where a name has both.

    Raises AddressError for what is neither.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]") or "-", None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise AddressError(
            f"--host wants an address of this machine or a name for one, not {host!r}: {error}"
        ) from None
    address = str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    if address == "255.255.255.255" or ipaddress.ip_address(address).is_multicast:
        raise AddressError(f"--host {address} is not the address of one machine")
    return address


def url_host(address: str) -> str:
    """How a client on this machine spells a numeric address that a server listens on."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"[{reachable}]" if ":" in reachable else reachable


def is_loopback(url: str) -> bool:
    """Whether "host:port" is this machine's loopback, which no proxy can reach for us."""
    host = url.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Refuse ports that cannot be listened on. `ports` maps a purpose ("http", "grpc", "metrics") to a number.

    `host` is numeric. Raises PortInUse for a busy port or one given twice, AddressError for another machine's address.
    """
    owners: dict[int, str] = {}
    for purpose, port in ports.items():
        if port in owners:
            raise PortInUse(f"port {port} was given for both {owners[port]} and {purpose}; they need one each")
        owners[port] = purpose
        with _tcp_socket(host) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise PortInUse(
                        f"{purpose} port {port} on {host} is in use by {_listener(port)}; stop that one or choose "
                        f"another port with --{purpose}-port"
                    ) from None
                raise AddressError(f"cannot listen on {host}:{port} for {purpose}: {error.strerror}") from None


def free_ports(host: str, count: int) -> list[int]:
    """`count` different ports that nobody listens on at the moment. Raises AddressError for another machine's host."""
    probes = [_tcp_socket(host) for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]
    except OSError as error:
        raise AddressError(f"cannot listen on {host}: {error.strerror}") from None
    finally:
        for probe in probes:
            probe.close()


def _tcp_socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def _listener(port: int) -> str:
    """Who listens on a port: "tritonserver (process 12, of `shelfwise serve`, process 10)" as far as can be seen."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            process = psutil.Process(connection.pid)
            parent = process.parent()
            owner = f", of process {parent.pid}, {' '.join(parent.cmdline()[:3])}" if parent else ""
            return f"{process.name()} (process {process.pid}{owner})"
    return f"another process (`ss -ltnp 'sport = :{port}'` names it to its owner)"
