"""Which hosts a reference may lead to, and at which addresses: the defence against references into
one's own network (SSRF).

``fetch.hosts`` for http and https holds

* names: ``images.example.com``, or ``*.example.com`` for every name below it. A listed name may
  lead to public addresses only;
* addresses and networks: ``10.1.2.3``, ``10.0.0.0/8``, ``fd00::/8``. They allow URLs that spell
  such an address, and listed names that resolve to one: a name in one's own network needs both
  entries;
* ``localhost`` (and ``*.localhost``), which also allow the loopback addresses that these names
  stand for (RFC 6761).

Each of them is for the ports 80 and 443, or for the one port that follows it (``HOST:PORT``,
``[::1]:PORT``). An address or network that allows what a name resolves to is for the ports of that
name, unless it has one of its own.

A name is resolved once per connection, and the connection goes to the very address that was
checked.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from streamer.config.value import split_port
from streamer.errors import InvalidRecord

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = frozenset((80, 443))
"""Of an entry that names none."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Hosts:
    """The allow-list, compiled. Any thread."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._networks: list[tuple[Network, int | None]] = []
        self._names: list[tuple[str, int | None]] = []
        for entry in entries:
            name, port = split_port(entry)
            try:
                self._networks.append((ipaddress.ip_network(name, strict=False), port))
            except ValueError:
                self._names.append((name.lower(), port))

    def resolve(self, host: str, port: int) -> list[str]:
        """The addresses, best first, that ``host`` leads to, all of them allowed. Blocks for as
        long as the system's resolver.

        Raises InvalidRecord: uri_not_allowed, not_found (no such name); OSError where the resolver
        cannot say now.
        """
        literal = _literal(host)
        if literal is not None:
            if not any(_holds(port, p) for p in self._ports_of(literal)):
                raise _not_listed(f"the address {host}", port)
            return [str(literal)]
        name = host.lower().rstrip(".")
        if not any(_holds(port, p) and _matches(name, n) for n, p in self._names):
            raise _not_listed(f"the host {host!r}", port)
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                raise InvalidRecord("not_found", f"no such host as {host!r}") from None
            raise
        except UnicodeError:
            raise InvalidRecord("uri_not_allowed", f"{host!r} is no host name") from None
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        for text in addresses:
            address = ipaddress.ip_address(text.partition("%")[0])
            if not (
                is_public(address)
                or any(p in (None, port) for p in self._ports_of(address))
                or (_is_localhost(name) and address.is_loopback)
            ):
                raise InvalidRecord(
                    "uri_not_allowed",
                    f"{host!r} resolves to {text}, which is not public; list that address or its network in fetch.hosts too",
                )
        return addresses

    def _ports_of(self, address: Address) -> list[int | None]:
        """The ports of the entries that hold the address; None: the entry names none."""
        inner = _embedded(address)
        return [
            port
            for network, port in self._networks
            for a in (address, inner)
            if a is not None and a.version == network.version and a in network
        ]


def _holds(port: int, listed: int | None) -> bool:
    return port in PORTS if listed is None else port == listed


def _matches(name: str, listed: str) -> bool:
    return name.endswith(listed[1:]) if listed.startswith("*.") else name == listed


def _not_listed(what: str, port: int) -> InvalidRecord:
    hint = "" if port in PORTS else ". An entry without a port is for 80 and 443"
    return InvalidRecord(
        "uri_not_allowed", f"{what}, port {port}, is not listed in fetch.hosts{hint}"
    )


def is_public(address: Address) -> bool:
    """Globally reachable unicast (IANA's special-purpose registries), also for the IPv4 address
    inside an IPv6 one."""
    inner = _embedded(address)
    return address.is_global and not address.is_multicast if inner is None else is_public(inner)


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped (RFC 4291), 6to4 (3056), Teredo (4380),
    NAT64 (6052)."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def _is_localhost(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _literal(host: str) -> Address | None:
    """The address that ``host`` spells, as the system's resolver would read it: also 127.1,
    0x7f000001 and 2130706433; not one with a zone (fe80::1%eth0), which means nothing elsewhere."""
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None
