"""A network in memory: connections that keep the order of their bytes, and nothing else.

What a process writes arrives after a delay that the seed chooses, at the latest known moment in
order. A blocked way (one direction between two processes) lets nothing through until it is open
again, and then what was held up arrives, as TCP sends it again. A connection may be reset at any
byte. The other end of a process that was killed hears of it; of one whose machine stopped, only
when that is there again.

Addresses are `host:port` or paths; the part before the first `:` or `/` names the process.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from shardb.sim.loop import MS, ProcessLoop, World

DELAY_MIN_NS: Final = 20_000
DELAY_SPREAD_NS: Final = 150_000
LATE_PART: Final = 0.01  # of what is sent takes up to LATE_MAX_NS more
LATE_MAX_NS: Final = 20 * MS
RETRANSMIT_MAX_NS: Final = 200 * MS
HIGH_WATER_BYTES: Final = 64 * 1024

Factory = Callable[[], asyncio.BaseProtocol]
_EOF: Final = 1
_RESET: Final = 2


def process_of(address: str) -> str:
    """The name of the process that listens there."""
    return re.split("[:/]", address, maxsplit=1)[0]


class SimTransport(asyncio.Transport):
    """One end of a connection. What comes to it is in `_arriving` until its time."""

    def __init__(
        self, network: Network, loop: ProcessLoop, protocol: asyncio.BaseProtocol | None
    ) -> None:
        super().__init__()
        self.network = network
        self.loop = loop
        self.peer: SimTransport | None = None
        self.peer_name = ""
        self.orphaned = False  # the other end's machine has stopped
        self._protocol: Any = protocol
        self._arriving: deque[bytes | int] = deque()
        self._stalled = 0  # of these, how many came while the way was blocked
        self._unread: deque[bytes | int] = deque()
        self._last_ns = 0  # when the last of what comes arrives
        self._reading = True
        self._closing = False
        self._lost = False
        self._unacknowledged = 0
        self._high = HIGH_WATER_BYTES
        self._paused = False

    # --- what comes in

    def send_here(self, item: bytes | int) -> None:
        """Something is on its way to this end."""
        self._arriving.append(item)
        at_ns = max(self._last_ns, self.network.arrives_ns(self.peer_name, self.loop.name))
        self._last_ns = at_ns
        self.loop.post(at_ns, self._arrive)

    def go_on(self) -> None:
        """The way here is open again."""
        stalled, self._stalled = self._stalled, 0
        world = self.network.world
        at_ns = world.now_ns + int(world.rng.random() * RETRANSMIT_MAX_NS)
        self._last_ns = max(self._last_ns, at_ns)
        for _ in range(stalled):
            self.loop.post(at_ns, self._arrive)

    def _arrive(self) -> None:
        if not self._arriving:
            return  # taken by a reset
        if self.network.is_blocked(self.peer_name, self.loop.name):
            self._stalled += 1
            return
        item = self._arriving.popleft()
        if self._reading and not self._unread:
            self._take(item)
        else:
            self._unread.append(item)

    def _take(self, item: bytes | int) -> None:
        if self._lost:
            return
        if isinstance(item, bytes):
            peer = self.peer
            if peer is not None:
                peer.acknowledged(len(item))
            if self._closing:
                return
            world = self.network.world
            world.note(f"{self.peer_name} > {self.loop.name}", item)
            if len(item) > 1 and world.rng.random() < self.network.split_part:
                at = world.rng.randrange(1, len(item))
                self._protocol.data_received(item[:at])
                if not self._closing:
                    self._protocol.data_received(item[at:])
            else:
                self._protocol.data_received(item)
        elif item == _EOF:
            if self._closing or not self._protocol.eof_received():
                self._lose(None)
        else:
            self._lose(ConnectionResetError(104, "Connection reset by peer"))

    def reset(self, cut: bool = False) -> None:
        """What is on its way here is lost, and then the connection; `cut`: but for a part."""
        left = [item for item in self._arriving if isinstance(item, bytes)]
        self._arriving.clear()
        self._stalled = 0
        if cut and left:
            rng = self.network.world.rng
            whole = b"".join(left)
            self._arriving.append(whole[: rng.randrange(len(whole) + 1)])
            self.loop.post(self.network.world.now_ns, self._arrive)
        self.send_here(_RESET)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self.network.forget(self)
        peer, self.peer = self.peer, None
        if peer is not None and peer.peer is self:
            peer.peer = None
            if error is None:
                peer.send_here(_EOF)
        self.loop.call_soon(self._protocol.connection_lost, error)

    # --- asyncio.Transport

    def write(self, data: Any) -> None:
        if self._closing or self.loop.dead or not data:
            return
        data = bytes(data)
        self._unacknowledged += len(data)
        if self.peer is not None and not self.orphaned:
            self.peer.send_here(data)
        if self._unacknowledged > self._high and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def acknowledged(self, size: int) -> None:
        """The other end has read this many bytes."""
        self._unacknowledged -= size
        if self._paused and self._unacknowledged <= self._high // 4:
            self._paused = False
            self.loop.call_soon(self._protocol.resume_writing)

    def close(self) -> None:
        if self._closing or self.loop.dead:
            return
        self._closing = True
        peer, self.peer = self.peer, None
        self.network.forget(self)
        if peer is not None:
            peer.peer = None
            peer.send_here(_EOF)
        self._lost = True
        self.loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        if self._lost or self.loop.dead:
            return
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            peer.reset()
        self._lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        found: asyncio.BaseProtocol = self._protocol
        return found

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return self._unacknowledged

    def can_write_eof(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._unread and not self.loop.dead:
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        while self._reading and self._unread:
            self._take(self._unread.popleft())


class SimServer:
    """What listens at an address. It is its own socket as well."""

    def __init__(self, network: Network, loop: ProcessLoop, address: str, factory: Factory) -> None:
        self.loop = loop
        self.factory = factory
        self._network = network
        self._address = address
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        host, _, port = self._address.rpartition(":")
        return host, int(port) if port.isdigit() else 0

    def close(self) -> None:
        if self._network.listeners.get(self._address) is self:
            del self._network.listeners[self._address]

    async def wait_closed(self) -> None:
        """Nothing is under way."""


class Network:
    """All connections between the processes of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.listeners: dict[str, SimServer] = {}
        self.split_part = 0.01  # of what arrives comes in two parts
        self.late_part = LATE_PART
        self._blocked: dict[tuple[str, str], None] = {}
        self._stopped: dict[str, None] = {}  # machines
        self._transports: dict[SimTransport, None] = {}
        self._accepting: dict[int, tuple[ProcessLoop, Callable[[], None]]] = {}
        self._held: list[tuple[str, str, Callable[[], None]]] = []  # connects on blocked ways

    def arrives_ns(self, source: str, target: str) -> int:
        """When something that is sent now arrives."""
        random = self.world.rng.random
        delay = DELAY_MIN_NS + int(random() * DELAY_SPREAD_NS)
        chance = random()
        if chance < self.late_part:
            delay += int(chance / self.late_part * LATE_MAX_NS)
        return self.world.now_ns + delay

    # --- connections

    def listen(self, loop: ProcessLoop, address: str, factory: Factory) -> SimServer:
        """Accepts connections at an address."""
        held = self.listeners.get(address)
        if held is not None and not held.loop.dead:
            raise OSError(98, "Address already in use")
        server = self.listeners[address] = SimServer(self, loop, address, factory)
        return server

    async def connect(
        self, loop: ProcessLoop, address: str, factory: Factory
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """As `create_connection`. OSError if nobody listens there."""
        made = loop.create_future()
        target = process_of(address)

        def knock() -> None:
            if loop.dead or made.done():
                return
            if self.is_blocked(loop.name, target) or target in self._stopped:
                self._held.append((loop.name, target, knock))
                return
            server = self.listeners.get(address)
            if server is None or server.loop.dead:
                loop.post(self.arrives_ns(target, loop.name), refuse)
            else:
                number = self.world.number()
                self._accepting[number] = server.loop, knock
                server.loop.post(self.world.now_ns, accept, number, server)

        def refuse() -> None:
            if not made.done():
                made.set_exception(ConnectionRefusedError(111, "Connection refused"))

        def accept(number: int, server: SimServer) -> None:
            del self._accepting[number]
            if loop.dead or made.done():
                return
            there = SimTransport(self, server.loop, server.factory())
            here = SimTransport(self, loop, None)
            there.peer, there.peer_name = here, loop.name
            here.peer, here.peer_name = there, server.loop.name
            self._transports[there] = self._transports[here] = None
            at_ns = self.arrives_ns(target, loop.name)
            here._last_ns = at_ns
            loop.post(at_ns, finish, here)
            there.get_protocol().connection_made(there)

        def finish(here: SimTransport) -> None:
            if made.done():
                here.set_protocol(asyncio.Protocol())
                here.abort()
                return
            protocol = factory()
            here.set_protocol(protocol)
            protocol.connection_made(here)
            made.set_result((here, protocol))

        at_ns = self.arrives_ns(loop.name, target)
        loop.post(at_ns, knock)
        found: tuple[asyncio.Transport, asyncio.BaseProtocol] = await made
        return found

    def forget(self, transport: SimTransport) -> None:
        """A connection has ended at this end."""
        self._transports.pop(transport, None)

    # --- faults

    def is_blocked(self, source: str, target: str) -> bool:
        """True if nothing that `source` sends reaches `target`."""
        return (source, target) in self._blocked

    def block(self, source: str, target: str) -> None:
        """Nothing gets from one process to the other any more."""
        self._blocked[source, target] = None

    def unblock_all(self) -> None:
        """All ways are open again; what was held up arrives."""
        self._blocked.clear()
        for transport in list(self._transports):
            if transport._stalled:
                transport.go_on()
        held, self._held = self._held, []
        for source, target, knock in held:
            if target in self._stopped:
                self._held.append((source, target, knock))
            else:
                knock()

    def connections(self) -> list[SimTransport]:
        """One end of each connection."""
        seen: dict[SimTransport, None] = {}
        for transport in self._transports:
            if transport.peer is not None and transport.peer not in seen:
                seen[transport] = None
        return list(seen)

    def break_connection(self, transport: SimTransport) -> None:
        """Both ends find their connection reset, in the midst of what was on its way."""
        peer = transport.peer
        if peer is None:
            return
        transport.peer = peer.peer = None
        transport.reset(cut=True)
        peer.reset(cut=True)

    def process_ended(self, loop: ProcessLoop, machine: bool) -> None:
        """A process is dead, alone or with its `machine`, of which nobody hears."""
        if machine:
            self._stopped[loop.name] = None
        for number, (server, knock) in list(self._accepting.items()):
            if server is loop:
                del self._accepting[number]
                knock()
        for transport in list(self._transports):
            if transport.loop is not loop:
                continue
            del self._transports[transport]
            peer, transport.peer = transport.peer, None
            if peer is None:
                continue
            if machine:
                peer.orphaned = True
            else:
                peer.peer = None
                peer.send_here(_RESET)

    def machine_started(self, name: str) -> None:
        """A machine is there again: whoever had connections to it hears that they are gone."""
        self._stopped.pop(name, None)
        for transport in list(self._transports):
            if transport.orphaned and transport.peer_name == name:
                transport.orphaned = False
                transport.peer = None
                transport.send_here(_RESET)
        held, self._held = self._held, []
        for source, target, knock in held:
            if target == name and not self.is_blocked(source, target):
                knock()
            else:
                self._held.append((source, target, knock))
