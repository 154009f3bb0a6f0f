"""Forward proxies of four kinds, for the tests of egress: HTTP (CONNECT), the same behind TLS, SOCKS 5.

    proxies.py CERTIFICATE KEY OUTPUT

Writes `HTTP_PORT HTTPS_PORT SOCKS_PORT` as the first line of OUTPUT, then one line per connection that is asked for:
`KIND HOST:PORT USER:PASSWORD` (`-` without credentials; KIND http, https or socks). Names that end in `.test` are 127.0.0.1; the host
`refused.test` is refused. Whoever says a user must say the password `p@ss`. Runs until it is killed.
"""

import base64
import socket
import ssl
import struct
import sys
import threading

output = open(sys.argv[3], "w", buffering=1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])


def exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def reach(host, port):
    if host == "refused.test":
        return None
    try:
        return socket.create_connection(("127.0.0.1" if host.endswith(".test") else host, port), 10)
    except OSError:
        return None


def join(client, upstream):
    threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
    pump(upstream, client)


def connect(kind, client):
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        text += exactly(client, 1)
    lines = text.decode().split("\r\n")
    host, port = lines[0].split(" ")[1].rsplit(":", 1)
    host = host.strip("[]")
    given = [line.split(" ")[2] for line in lines if line.lower().startswith("proxy-authorization: basic ")]
    credentials = base64.b64decode(given[0]).decode() if given else "-"
    output.write(f"{kind} {host}:{port} {credentials}\n")
    if given and not credentials.endswith(":p@ss"):
        return client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    upstream = reach(host, int(port))
    if upstream is None:
        return client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    join(client, upstream)


def socks(client):
    version, count = exactly(client, 2)
    methods = exactly(client, count)
    if version != 5:
        return
    credentials = "-"
    if 2 in methods:
        client.sendall(b"\x05\x02")
        assert exactly(client, 1) == b"\x01"
        user = exactly(client, exactly(client, 1)[0]).decode()
        password = exactly(client, exactly(client, 1)[0]).decode()
        credentials = f"{user}:{password}"
        client.sendall(b"\x01\x00" if password == "p@ss" else b"\x01\x01")
        if password != "p@ss":
            output.write(f"socks - {credentials}\n")
            return
    else:
        client.sendall(b"\x05\x00")
    _, command, _, kind = exactly(client, 4)
    if kind == 1:
        host = socket.inet_ntop(socket.AF_INET, exactly(client, 4))
    elif kind == 4:
        host = socket.inet_ntop(socket.AF_INET6, exactly(client, 16))
    else:
        host = exactly(client, exactly(client, 1)[0]).decode()
    (port,) = struct.unpack(">H", exactly(client, 2))
    output.write(f"socks {host}:{port} {credentials}\n")
    upstream = reach(host, port) if command == 1 else None
    # The answer in pieces: whoever waits for it must put it together.
    answer = (b"\x05\x00" if upstream else b"\x05\x05") + b"\x00\x03\x07example\x00\x50"
    for i in range(len(answer)):
        client.sendall(answer[i : i + 1])
    if upstream:
        join(client, upstream)


def handle(kind, raw):
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if kind == "https":
            raw = context.wrap_socket(raw, server_side=True)
        socks(raw) if kind == "socks" else connect(kind, raw)
    except (OSError, AssertionError, ValueError, IndexError):
        pass
    finally:
        raw.close()


def listen(kind):
    server = socket.create_server(("127.0.0.1", 0), backlog=64)

    def accept():
        while True:
            threading.Thread(target=handle, args=(kind, server.accept()[0]), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]


ports = [listen(kind) for kind in ("http", "https", "socks")]
output.write(" ".join(map(str, ports)) + "\n")
threading.Event().wait()
