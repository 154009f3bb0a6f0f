"""An https upstream and an HTTP proxy in front of it, for the TLS tests.

    tls_upstream.py CERTIFICATE KEY OUTPUT

Writes `PORT PROXY_PORT EARLY_PORT` as the first line of OUTPUT, then one line per event: `request VERSION SNI RESUMED`, `connect TARGET AUTHORIZATION`,
`failed` for a handshake that did not come to an end. Runs until it is killed. To the key `poison` it gives an answer with the request's
id, and in the same packet, as a record of its own, another answer that nobody asked for; the connection stays open. To the key `packed` it gives 20 MB of events in
some 20 KB of gzip, and its end right behind. The server at
EARLY_PORT sends such an answer behind its Finished, in the same packet, before it reads anything.
"""

import gzip
import socket
import ssl
import sys
import threading

BODY = (
    b'{"id":"resp_tls","object":"response","created_at":1,"status":"completed","model":"gpt-5.4","output":[],"error":null,'
    b'"usage":{"input_tokens":1,"input_tokens_details":{"cached_tokens":0},"output_tokens":1,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":2}}'
)
EVENT = b'data: {"type":"response.output_text.delta","delta":"%s"}\n\n' % (b"y" * 65000)
PACKED = gzip.compress(
    b'data: {"type":"response.created","response":{"id":"r"}}\n\n' + EVENT * 300 + b'data: {"type":"response.completed","response":' + BODY + b"}\n\n"
)
PACKED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(PACKED)
output = open(sys.argv[3], "w", buffering=1)
names = {}
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
context.sni_callback = lambda sock, name, _: names.__setitem__(id(sock), name) or None
context.minimum_version = ssl.TLSVersion.TLSv1_2


def head(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            return None, b""
        data += more
    text, rest = data.split(b"\r\n\r\n", 1)
    return text.decode(), rest


def field(text, name):
    for line in text.split("\r\n")[1:]:
        key, value = line.split(":", 1)
        if key.lower() == name:
            return value.strip()
    return ""


def serve(raw):
    try:
        stream = context.wrap_socket(raw, server_side=True)
    except (ssl.SSLError, OSError):
        output.write("failed\n")
        return
    with stream:
        while True:
            text, rest = head(stream)
            if text is None:
                return
            missing = int(field(text, "content-length") or 0) - len(rest)
            while missing > 0:
                missing -= len(stream.recv(65536))
            output.write(f"request {stream.version()} {names.get(id(stream))} {stream.session_reused}\n")
            if "poison" in field(text, "authorization"):
                own = b'{"id":"%s","output":[]}' % field(text, "x-request-id").encode()
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                for body in (own, b'{"id":"poison","output":[]}'):
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
                continue
            if "packed" in field(text, "authorization"):
                stream.sendall(PACKED_HEAD + PACKED)
                stream.unwrap()
                return
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
            stream.unwrap()
            return


def early(raw):
    """TLS 1.2, where the server's Finished is the handshake's last message."""
    tls12 = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls12.load_cert_chain(sys.argv[1], sys.argv[2])
    tls12.maximum_version = ssl.TLSVersion.TLSv1_2
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    stream = tls12.wrap_bio(received, to_send, server_side=True)

    def until_done(step):
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                raw.sendall(to_send.read())
                data = raw.recv(65536)
                if not data:
                    raise ConnectionError
                received.write(data)

    until_done(stream.do_handshake)
    body = b'{"id":"poison","output":[]}'
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    raw.sendall(to_send.read())
    if until_done(lambda: stream.read(65536)):
        output.write("request early\n")


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def proxy(client):
    text, rest = head(client)
    if text is None:
        return
    target = text.split(" ")[1]
    output.write(f"connect {target} {field(text, 'proxy-authorization')}\n")
    if "refused" in target:
        client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        client.close()
        return
    upstream = socket.create_connection(("127.0.0.1", int(target.rsplit(":", 1)[1])))
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
    pump(upstream, client)


def listen(handler):
    listener = socket.create_server(("127.0.0.1", 0))

    def loop():
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=quietly, args=(handler, stream), daemon=True).start()

    def quietly(handler, stream):
        try:
            handler(stream)
        except OSError:
            pass

    threading.Thread(target=loop, daemon=True).start()
    return listener.getsockname()[1]


ports = f"{listen(serve)} {listen(proxy)} {listen(early)}"
output.write(ports + "\n")
threading.Event().wait()
