"""A small HTTP server that answers late: the slow service that `fetch` jobs wait for.

Each answer repeats its key, and its delay depends on seed and key alone, so every pool meets the same delays.
Run as `python -m lab.upstream --mean-ms 50`: it prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from urllib.parse import parse_qs, urlsplit

SPREAD = 0.2
"""Standard deviation of a delay's logarithm: services differ from call to call by about a fifth."""
MAX_REQUEST_BYTES = 8192


def delay_s(*, mean_ms: float, seed: int, key: str) -> float:
    """How long the answer for `key` takes: log-normal with the given mean, the same on every call."""
    # The mean of a log-normal is exp(mu + sigma^2 / 2).
    return mean_ms / 1e3 * random.Random(f"{seed} {key}").lognormvariate(-(SPREAD**2) / 2, SPREAD)


async def serve(*, host: str, port: int, mean_ms: float, seed: int) -> None:
    """Answer until cancelled."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            key = parse_qs(urlsplit(target).query).get("key", [""])[0]
            if method == "GET" and key:
                await asyncio.sleep(delay_s(mean_ms=mean_ms, seed=seed, key=key))
                status, body = "200 OK", key.encode()
            else:
                status, body = "400 Bad Request", b"ask with GET /?key=..."
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            pass  # a client that went away or spoke nonsense gets no answer, and the others do not notice
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, port, limit=MAX_REQUEST_BYTES, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve as the arguments say."""
    parser = argparse.ArgumentParser(description="An HTTP server that answers late.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--mean-ms", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        asyncio.run(serve(host=options.host, port=options.port, mean_ms=options.mean_ms, seed=options.seed))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
