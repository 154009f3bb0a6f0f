"""Runs the benchmark and prints medians and ratios. Usage: run.py BIN_DIR SECONDS ROUNDS (see run.sh)."""

import json
import os
import re
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
work = tempfile.mkdtemp(prefix="codex-lb-bench-")
os.chmod(work, 0o755)
children = []


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


def upstream(interval, events=20):
    port = free_port()
    start([codex_lb, "demo-upstream", "--listen", f"127.0.0.1:{port}", "--events", str(events), "--interval-ms", str(interval), "--pin", "0"],
          stdout=subprocess.DEVNULL)
    wait_port(port)
    return port


class Proxy:
    """codex-lb with one account on the upstream."""

    def __init__(self, name, upstream_port):
        self.port = free_port()
        data = os.path.join(work, name)
        env = {**os.environ, "CODEX_LB_DATA_DIR": data, "CODEX_LB_PIN_FIRST_CPU": "1", "CODEX_LB_LOG_LEVEL": "warning"}
        key = os.path.join(work, "key")
        open(key, "w").write("sk-bench\n")
        subprocess.run([codex_lb, "accounts", "add", "bench", "--base-url", f"http://127.0.0.1:{upstream_port}/v1", "--key-file", key],
                       env=env, check=True, stdout=subprocess.DEVNULL)
        self.env = env
        begin = time.monotonic()
        start([codex_lb, "serve", "--listen", f"127.0.0.1:{self.port}", "--workers", "1"], env=env)
        while True:
            status = self.status()
            if status and status["state"] == "serving":
                break
            if time.monotonic() - begin > 20:
                sys.exit("codex-lb did not become ready")
            time.sleep(0.005)
        self.ready_seconds = time.monotonic() - begin
        self.worker = [c["pid"] for c in status["children"] if c["role"] == "worker"]
        self.all = [status["pid"]] + [c["pid"] for c in status["children"]]

    def status(self):
        done = subprocess.run([codex_lb, "ctl", "status", "--json"], env=self.env, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    pids = property(lambda self: self.worker)


class Nginx:
    def __init__(self, name, upstream_port):
        self.port = free_port()
        directory = os.path.join(work, name)
        os.makedirs(directory)
        conf = os.path.join(directory, "nginx.conf")
        open(conf, "w").write(f"""
            worker_processes 1; worker_cpu_affinity 10; pid {directory}/pid; error_log {directory}/error.log; daemon off;
            events {{ worker_connections 8192; }}
            http {{
                access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
                uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s; keepalive_requests 100000000; proxy_buffering off;
                upstream up {{ server 127.0.0.1:{upstream_port}; keepalive 2048; keepalive_requests 100000000; }}
                server {{ listen 127.0.0.1:{self.port} backlog=4096;
                    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
            }}""")
        master = start([shutil.which("nginx") or "/usr/sbin/nginx", "-c", conf, "-p", directory], stderr=subprocess.DEVNULL)
        wait_port(self.port)
        children_file = f"/proc/{master.pid}/task/{master.pid}/children"
        self.pids = [int(p) for p in open(children_file).read().split()]


def measure(proxy, connections, body, seconds=seconds, warmup=1.0):
    out = subprocess.run(
        [load, "--target", f"127.0.0.1:{proxy.port}", "--connections", str(connections), "--seconds", str(seconds), "--warmup", str(warmup),
         "--body", body, "--pin", "0", "--proxy-pid", ",".join(str(p) for p in proxy.pids)], capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"load generator failed: {out.stderr}")
    return json.loads(out.stdout)


def compare(label, ours, theirs, connections, body):
    a, b = [], []
    for _ in range(rounds):  # by turns, so that a noisy moment meets both
        a.append(measure(ours, connections, body))
        b.append(measure(theirs, connections, body))
    mid = lambda rows, key: statistics.median(r[key] for r in rows)
    errors = sum(r["errors"] for r in a) + sum(r["errors"] for r in b)
    print(f"{label:34} {mid(a, 'requests_per_second'):9.0f} {mid(b, 'requests_per_second'):9.0f} "
          f"{mid(a, 'requests_per_second') / mid(b, 'requests_per_second'):6.2f} "
          f"{mid(a, 'proxy_cpu_microseconds_per_request'):8.0f} {mid(b, 'proxy_cpu_microseconds_per_request'):8.0f} "
          f"{mid(a, 'p99_ms'):8.2f} {mid(b, 'p99_ms'):8.2f} {errors:6}", flush=True)


try:
    print("machine:", os.cpu_count(), "CPUs,", next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?"))
    fast = upstream(0)
    ours, theirs = Proxy("ours", fast), Nginx("nginx", fast)
    print(f"READY after {ours.ready_seconds:.3f} s on an existing database")
    print(f"{'':34} {'codex-lb':>9} {'nginx':>9} {'ratio':>6} {'us CPU':>8} {'nginx':>8} {'p99 ms':>8} {'nginx':>8} {'errors':>6}   (requests/s, medians)")
    plain = '{"model":"demo-1","input":"Hello","stream":false}'
    streamed = '{"model":"demo-1","input":"Hello","stream":true}'
    for name, body in (("not streamed", plain), ("stream of 20 events", streamed)):
        for connections in (1, 16, 64):
            compare(f"{name}, {connections} connections", ours, theirs, connections, body)
    slow = upstream(50, events=2000)
    ours2, theirs2 = Proxy("ours2", slow), Nginx("nginx2", slow)
    for proxy, name in ((ours2, "codex-lb"), (theirs2, "nginx")):
        row = measure(proxy, 1000, streamed, seconds=max(5, seconds), warmup=4)
        print(f"1000 open streams, 20 events/s each: {name}: {row['events_per_second']:.0f} events/s, "
              f"{row['proxy_cpu_seconds'] / max(5, seconds) * 100:.0f} % of a CPU, {row['proxy_resident_kib'] / 1024:.1f} MiB resident, "
              f"{row['open']} open, {row['errors']} errors")
finally:
    for child in reversed(children):
        child.send_signal(signal.SIGTERM if child.poll() is None else 0) if child.poll() is None else None
    end = time.monotonic() + 5
    for child in children:
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
    shutil.rmtree(work, ignore_errors=True)
