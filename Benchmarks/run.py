"""Runs the benchmark and prints medians and ratios. Usage: run.py BIN_DIR SECONDS ROUNDS [CASE ...] (see run.sh).

CASES, all by default:
  turns   streams of 20 events and JSON answers at 1 to 256 connections
  tls     the same with upstreams behind TLS, and turns that each need a connection of their own
  bodies  requests of 1 MB and 30 MB
  long    streams of 10,000 events
  open    1,000 to 10,000 open streams of 20 events a second: memory and CPU, and how both grow
  sticky  turns of conversations in a pool of two: what it costs to keep them with their account
  delay   what a proxy adds to an event's way, at 1 and at 1,000 streams

The proxy has CPU 1: nginx's one worker there, and of codex-lb all processes, so that whatever it does to account for a turn counts
against it. Upstreams, the load generator and the TLS before upstreams share CPU 0.
"""

import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

bin_dir, seconds, rounds = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
codex_lb, load = os.path.join(bin_dir, "codex-lb"), os.path.join(bin_dir, "codex-lb-load")
nginx = shutil.which("nginx") or "/usr/sbin/nginx"
work = tempfile.mkdtemp(prefix="codex-lb-bench-")
os.chmod(work, 0o755)
children = []
PROXY_CPU, OTHER_CPU = 1, 0
PLAIN = '{"model":"demo-1","input":"Hello","stream":false}'
STREAMED = '{"model":"demo-1","input":"Hello","stream":true}'


def raise_descriptors(wanted=65536):
    """An open stream is two descriptors of the proxy. Root may raise the hard limit; what we got."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, wanted), max(hard, wanted)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"nothing listens on port {port}")


def start(args, **kwargs):
    child = subprocess.Popen(args, **kwargs)
    children.append(child)
    return child


def pin(pid, cpu):
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {cpu})


def resident_kib(pids):
    lines = [line for pid in pids for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS:")]
    return sum(int(line.split()[1]) for line in lines)


class Upstream:
    """The demo upstream, and how it is reached: https when TLS stands before it."""

    def __init__(self, interval=0, events=20, stamps=False):
        self.scheme, self.host, self.port, self.certificate = "http", "127.0.0.1", free_port(), None
        command = [codex_lb, "demo-upstream", "--listen", f"127.0.0.1:{self.port}", "--events", str(events), "--interval-ms", str(interval)]
        start(command + ["--pin", str(OTHER_CPU)] + (["--stamps"] if stamps else []), stdout=subprocess.DEVNULL)
        wait_port(self.port)
        self.pids = []


class Nginx:
    """One nginx worker; `server` is the inside of its server block, `http` of its http block."""

    def __init__(self, name, cpu, http, server, listen=""):
        self.port = free_port()
        directory = tempfile.mkdtemp(prefix=name + "-", dir=work)
        os.chmod(directory, 0o755)
        conf = os.path.join(directory, "nginx.conf")
        with open(conf, "w") as file:
            file.write(f"""
            worker_processes 1; worker_cpu_affinity {1 << cpu:b}; worker_rlimit_nofile {descriptors};
            pid {directory}/pid; error_log {directory}/error.log; daemon off;
            events {{ worker_connections {descriptors}; }}
            http {{
                access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
                uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s; keepalive_requests 100000000; proxy_buffering off;
                client_max_body_size 0; client_body_buffer_size 32m;
                {http}
                server {{ listen 127.0.0.1:{self.port} backlog=4096 {listen}; {server} }}
            }}""")
        master = start([nginx, "-c", conf, "-p", directory], stderr=subprocess.DEVNULL)
        wait_port(self.port)
        # The master listens before it has its worker.
        self.pids, end = [], time.monotonic() + 10
        while not self.pids:
            with open(f"/proc/{master.pid}/task/{master.pid}/children") as file:
                self.pids = [int(p) for p in file.read().split()]
            if time.monotonic() > end:
                sys.exit("nginx has no worker")


KEEPALIVE = 'proxy_http_version 1.1; proxy_set_header Connection "";'


def pool(upstream):
    return f"upstream up {{ server 127.0.0.1:{upstream.port}; keepalive 16384; keepalive_requests 100000000; }}"


def peer(upstream):
    """nginx as a plain reverse proxy to this upstream, with sessions that are taken up again where it is TLS."""
    tls = f"""proxy_ssl_trusted_certificate {upstream.certificate}; proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_server_name on;
              proxy_ssl_session_reuse on;""" if upstream.certificate else ""
    return Nginx("nginx", PROXY_CPU, pool(upstream), f"location / {{ proxy_pass {upstream.scheme}://up; {KEEPALIVE} {tls} }}")


class SecureUpstream:
    """TLS before an upstream. `keeps`: connections are used again, else each turn has one of its own, with the session of the one before."""

    def __init__(self, upstream, keeps=True):
        certificate, key = os.path.join(work, "certificate.pem"), os.path.join(work, "key.pem")
        if not os.path.exists(certificate):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                 "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
                check=True, stderr=subprocess.DEVNULL)
        front = Nginx(
            "tls", OTHER_CPU,
            f"{pool(upstream)} ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_session_cache shared:S:10m;"
            + ("" if keeps else "keepalive_timeout 0;"),
            f"location / {{ proxy_pass http://up; {KEEPALIVE} }}", listen="ssl")
        self.scheme, self.host, self.port, self.certificate = "https", "localhost", front.port, certificate


class CodexLB:
    """codex-lb with accounts on the upstream. Accounting is on."""

    def __init__(self, upstream, accounts=1, settings={}):
        self.port = free_port()
        data = tempfile.mkdtemp(prefix="codex-lb-", dir=work)
        self.env = {**os.environ, "CODEX_LB_DATA_DIR": data, "CODEX_LB_PIN_FIRST_CPU": str(PROXY_CPU), "CODEX_LB_LOG_LEVEL": "warning",
                    **settings}
        if upstream.certificate:
            self.env["SSL_CERT_FILE"] = upstream.certificate
        for number in range(accounts):
            subprocess.run(
                [codex_lb, "accounts", "add", f"bench{number}", "--base-url", f"{upstream.scheme}://{upstream.host}:{upstream.port}/v1",
                 "--key-file", "-"], env=self.env, check=True, stdout=subprocess.DEVNULL, input=b"sk-bench\n")
        begin = time.monotonic()
        start([codex_lb, "serve", "--listen", f"127.0.0.1:{self.port}", "--workers", "1"], env=self.env)
        while True:
            status = self.status()
            if status and status["state"] == "serving":
                break
            if time.monotonic() - begin > 20:
                sys.exit("codex-lb did not become ready")
            time.sleep(0.005)
        self.ready_seconds = time.monotonic() - begin
        self.pids = [status["pid"]] + [c["pid"] for c in status["children"]]
        for pid in self.pids:
            pin(pid, PROXY_CPU)

    def status(self):
        done = subprocess.run([codex_lb, "ctl", "status", "--json"], env=self.env, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None


def measure(target, connections, body, seconds=seconds, warmup=1.0, options=()):
    out = subprocess.run(
        [load, "--target", f"127.0.0.1:{target.port}", "--connections", str(connections), "--seconds", str(seconds), "--warmup", str(warmup),
         "--body", body, "--pin", str(OTHER_CPU), "--proxy-pid", ",".join(str(p) for p in target.pids), *options],
        capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"load generator failed: {out.stderr}")
    return json.loads(out.stdout)


def middle(rows, value):
    return statistics.median(value(row) for row in rows)


def ratio(a, b):
    return f"{a / b:6.2f}" if b else f"{'-':>6}"


def by_turns(targets, connections, body, **keywords):
    """Rounds of each target, one after the other, so that a noisy moment meets all."""
    rows = [[] for _ in targets]
    for _ in range(rounds):
        for target, found in zip(targets, rows):
            found.append(measure(target, connections, body, **keywords))
    return rows


def compare(label, targets, connections, body, **keywords):
    rows = by_turns(targets, connections, body, **keywords)
    rates = [middle(found, lambda r: r["requests_per_second"]) for found in rows]
    user, kernel = (
        [middle(found, lambda r: r[key] * 1e6 / max(1, r["requests"])) for found in rows] for key in ("proxy_user_seconds", "proxy_kernel_seconds"))
    p99 = [middle(found, lambda r: r["p99_ms"]) for found in rows]
    errors = sum(int(r["errors"]) for found in rows for r in found)
    print(f"{label:38} {rates[0]:8.0f} {rates[1]:8.0f} {ratio(*rates)}  {user[0]:7.0f}+{kernel[0]:<6.0f} {user[1]:7.0f}+{kernel[1]:<6.0f} "
          f"{ratio(user[0] + kernel[0], user[1] + kernel[1])}  {p99[0]:8.2f} {p99[1]:8.2f} {errors:6}", flush=True)


def heading(text):
    print(f"\n{text}")
    print(f"{'turns/s, CPU us per turn user+kernel':38} {'codex-lb':>8} {'nginx':>8} {'ratio':>6}  {'codex-lb':>14} {'nginx':>14} "
          f"{'ratio':>6}  {'p99 ms':>8} {'nginx':>8} errors")


def shapes(targets):
    for name, body in (("JSON", PLAIN), ("stream of 20 events", STREAMED)):
        for connections in (1, 16, 64, 256):
            compare(f"{name}, {connections} connections", targets, connections, body)


def case_turns():
    heading("Plain upstreams")
    upstream = Upstream()
    ours = CodexLB(upstream)
    print(f"(READY after {ours.ready_seconds:.3f} s on an existing database)")
    shapes([ours, peer(upstream)])


def case_tls():
    heading("Upstreams behind TLS, connections and sessions used again")
    upstream = Upstream()
    secure = SecureUpstream(upstream)
    shapes([CodexLB(secure), peer(secure)])
    heading("Upstreams behind TLS that close after each answer: a connection each turn, sessions used again")
    secure = SecureUpstream(upstream, keeps=False)
    targets = [CodexLB(secure), peer(secure)]
    for connections in (1, 16):
        compare(f"JSON, {connections} connections", targets, connections, PLAIN)


def case_bodies():
    heading("Large requests, JSON answers")
    upstream = Upstream()
    targets = [CodexLB(upstream), peer(upstream)]
    for megabytes, connections in ((1, 1), (1, 16), (30, 1), (30, 4)):
        compare(f"request of {megabytes} MB, {connections} connections", targets, connections, PLAIN,
                options=["--body-bytes", str(megabytes * 1_000_000)])


def case_long():
    heading("Streams of 10,000 events")
    upstream = Upstream(events=10_000)
    targets = [CodexLB(upstream), peer(upstream)]
    for connections in (1, 16):
        compare(f"stream of 10,000 events, {connections} connections", targets, connections, STREAMED)


def case_open():
    print("\nOpen streams, 20 events/s each where CPU 0 can send them. KiB per stream: what memory grew by since nothing was open")
    print(f"{'streams':>8} {'':10} {'open':>6} {'events/s':>9} {'% CPU':>6} {'us/event user+kernel':>21} {'MiB':>7} {'KiB/stream':>10} {'errors':>7}")
    span = max(5, seconds)
    most = descriptors * 45 // 100 - 100  # codex-lb takes clients on 45 % of its descriptors (WorkerRole/Worker.swift)
    if most < 10_000:
        print(f"(at most {most}: {descriptors} descriptors are allowed, RLIMIT_NOFILE)")
    for count in sorted({min(count, most) for count in (1_000, 5_000, 10_000)}):
        upstream = Upstream(interval=50, events=5_000)
        for name, make in (("codex-lb", CodexLB), ("nginx", peer)):
            proxy = make(upstream)
            before = resident_kib(proxy.pids)
            row = measure(proxy, count, STREAMED, seconds=span, warmup=3 + count / 500)
            cpu = row["proxy_user_seconds"] + row["proxy_kernel_seconds"]
            user, kernel = (row[key] * 1e6 / max(1, row["events"]) for key in ("proxy_user_seconds", "proxy_kernel_seconds"))
            print(f"{count:8} {name:10} {row['open']:6} {row['events_per_second']:9.0f} {cpu / row['seconds'] * 100:6.0f} "
                  f"{user:13.1f}+{kernel:<7.1f} {row['proxy_resident_kib'] / 1024:7.1f} {(row['proxy_resident_kib'] - before) / count:10.1f} "
                  f"{row['errors']:7}", flush=True)


def case_sticky():
    print("\nStreams of 20 events, two accounts, turns that bring prompt_cache_key and previous answers")
    print(f"{'':38} {'turns/s':>8} {'of off':>7}  {'CPU us per turn':>15} {'of off':>7} errors")
    upstream = Upstream()
    body = ('{"model":"demo-1","stream":true,"prompt_cache_key":"c1","input":[{"role":"user","content":"Hello"},'
            '{"role":"assistant","content":"Hi"},{"role":"user","content":"Go on"}]}')
    targets = [CodexLB(upstream, 2, {"CODEX_LB_STICKINESS": word}) for word in ("false", "true")]
    for connections in (16, 64):
        rows = by_turns(targets, connections, body)
        rates = [middle(found, lambda r: r["requests_per_second"]) for found in rows]
        costs = [middle(found, lambda r: (r["proxy_user_seconds"] + r["proxy_kernel_seconds"]) * 1e6 / max(1, r["requests"])) for found in rows]
        for name, found, rate, cost in zip(("off", "on"), rows, rates, costs):
            print(f"{f'stickiness {name}, {connections} connections':38} {rate:8.0f} {rate / rates[0]:7.3f}  {cost:15.1f} {cost / costs[0]:7.3f} "
                  f"{sum(int(r['errors']) for r in found):6}", flush=True)


def case_delay():
    print("\nAn event's way from the upstream's write to the client's read, ms; added: less the direct connection's")
    print(f"{'':34} {'p50':>7} {'added':>7} {'p99':>7} {'added':>7} {'events':>8}")
    for count, interval in ((1, 5), (1_000, 50)):
        upstream = Upstream(interval=interval, events=20_000, stamps=True)
        targets = [upstream, CodexLB(upstream), peer(upstream)]
        rows = by_turns(targets, count, STREAMED, warmup=1 + count / 500, options=["--delays"])
        direct = None
        for name, found in zip(("direct", "codex-lb", "nginx"), rows):
            p50, p99 = (middle(found, lambda r: r[key]) for key in ("event_delay_p50_ms", "event_delay_p99_ms"))
            direct = direct or (p50, p99)
            print(f"{f'{count} streams, {1000 // interval}/s each, {name}':34} {p50:7.3f} {p50 - direct[0]:7.3f} {p99:7.3f} {p99 - direct[1]:7.3f} "
                  f"{sum(r['event_delays'] for r in found):8}", flush=True)


cases = {"turns": case_turns, "tls": case_tls, "bodies": case_bodies, "long": case_long, "open": case_open, "sticky": case_sticky, "delay": case_delay}
wanted = sys.argv[4:] or list(cases)
if unknown := [name for name in wanted if name not in cases]:
    sys.exit(f"no such case: {' '.join(unknown)}; there are {' '.join(cases)}")
descriptors = raise_descriptors()


def stop_children():
    for child in reversed(children):
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    end = time.monotonic() + 10
    for child in children:
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    children.clear()


try:
    print("machine:", os.cpu_count(), "CPUs,", next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?"))
    print(f"load before: {os.getloadavg()[0]:.2f}; {rounds} rounds of {seconds:g} s, medians")
    for name in wanted:
        cases[name]()
        stop_children()
finally:
    stop_children()
    shutil.rmtree(work, ignore_errors=True)
