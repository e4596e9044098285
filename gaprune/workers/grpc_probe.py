"""Is there a gRPC server at an address? Ray would try for minutes, and has no function that asks.

One request in HTTP/2 (RFC 9113), with headers in HPACK (RFC 7541), is sent on a plain socket. All
servers of Ray answer "200 OK" to every path; proxies and other servers do not.
"""

from __future__ import annotations

import socket

SETTINGS, HEADERS, DATA = 4, 1, 0  # types of frames
END_HEADERS, END_STREAM = 4, 1  # flags
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# In HPACK's table of headers: 0x83 POST, 0x86 http, 0x88 status 200, 1 host, 4 path, 31 content
# type. Texts follow their length.
REQUEST = b"\x83\x86\x01\x03ray\x04\x01/\x0f\x10\x10application/grpc\x00\x02te\x08trailers"
STATUS_200 = 0x88
MOST_FRAMES = 16  # before the headers of the answer; Ray sends five


def check_grpc_server(address: tuple[str, int], seconds: float) -> None:
    """Send a request and check the answer; `seconds` is the time limit of every step.

    Raises:
        OSError: nothing listens, or it does not answer as a gRPC server does.
    """
    with socket.create_connection(address, seconds) as connection:
        connection.sendall(
            PREFACE
            + _frame(SETTINGS, 0, 0, b"")
            + _frame(HEADERS, END_HEADERS, 1, REQUEST)
            + _frame(DATA, END_STREAM, 1, bytes(5))  # an empty message
        )
        answer = connection.makefile("rb")
        for _ in range(MOST_FRAMES):
            head = answer.read(9)
            payload = answer.read(int.from_bytes(head[:3]))
            if head[3:4] == bytes([HEADERS]) and payload[:1] == bytes([STATUS_200]):
                return
            if len(head) < 9 or head[3] == HEADERS:
                break
    raise OSError("the server there is not Ray's")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload
