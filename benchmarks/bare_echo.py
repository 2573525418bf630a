"""The bare baseline: 1 KiB there and back on one libp2p stream (Noise, yamux, TCP), two processes.

`python bare_echo.py PORT` is the other side; it runs until its standard input ends.
"""

import sys
from time import perf_counter
from typing import Any

import libp2p
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from multiaddr import Multiaddr

PROTOCOL: Any = "/bare-echo/1"
SIZE = 1024


def _host() -> Any:
    keys = create_new_key_pair()
    noise: Any = Transport(libp2p_keypair=keys, noise_privkey=create_x25519())
    return libp2p.new_host(key_pair=keys, sec_opt={PROTOCOL_ID: noise})


def create_x25519() -> Any:
    from libp2p.crypto.x25519 import create_new_key_pair as new_x25519

    return new_x25519().private_key


async def serve() -> None:
    """Echo, and print the address first."""
    host = _host()

    async def echo(stream: Any) -> None:
        while data := await stream.read(SIZE):
            await stream.write(data)

    host.set_stream_handler(PROTOCOL, echo)
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        print(host.get_addrs()[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


async def measure(address: str, count: int, warm: int) -> list[float]:
    """Return the round trip times in ms."""
    host = _host()
    payload = b"x" * SIZE
    taken: list[float] = []
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        info = info_from_p2p_addr(Multiaddr(address))
        await host.connect(info)
        stream = await host.new_stream(info.peer_id, [PROTOCOL])
        for number in range(warm + count):
            started = perf_counter()
            await stream.write(payload)
            left = SIZE
            while left:
                left -= len(await stream.read(left))
            if number >= warm:
                taken.append((perf_counter() - started) * 1000)
        await stream.reset()
    return taken


if __name__ == "__main__":
    trio.run(serve)
