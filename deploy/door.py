"""A door to a service that publishes nothing: what connects to us is joined with HOST:PORT in the stack's network.

`docker run -p 127.0.0.1:5555:5555 --network ... python deploy/door.py flower:5555` opens Flower to this machine alone.
"""

import asyncio
import contextlib
import signal
import sys


async def pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on all that comes, until it ends."""
    with contextlib.suppress(OSError):
        while some := await source.read(65536):
            sink.write(some)
            await sink.drain()
    sink.close()


async def serve(host: str, port: int) -> None:
    """Join whoever comes with a connection of his own."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, port)
        except OSError as error:
            print(f"{host}:{port} does not answer: {error}", file=sys.stderr, flush=True)
            writer.close()
            return
        await asyncio.gather(pour(reader, back), pour(there, writer))

    server = await asyncio.start_server(join, "0.0.0.0", port)  # noqa: S104  who runs it says where it is published
    print(f"open: port {port} of this container leads to {host}:{port}; Ctrl-C closes it", flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve until stopped."""
    host, _, port = sys.argv[1].rpartition(":") if len(sys.argv) == 2 else ("", "", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        print("door: name where it leads as HOST:PORT, such as flower:5555", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(host, int(port)))


if __name__ == "__main__":
    main()
