"""Instructions in user space, counted by callgrind: of a worker per streamed turn, per event, per JSON turn, of the writer per record.
Usage: instructions.py BIN_DIR [--write] [--only=worker | --only=writer] (see `make bench-instructions`).

Time on a shared machine wavers by several percent, and this machine may have no hardware counters for `perf stat`; callgrind counts each
instruction of the program and its libraries. Two runs with FEW and MANY turns are subtracted, so that start, first turns and end cancel
out. Both last LASTS_SECONDS: what a worker does by the clock (it looks at its connections every 50 ms, at models now and then) is the same
in both. The other processes run natively: only the one process's own work is counted, the kernel's is not. The writer gets batches from
codex-lb-store-bench, one after the other, so that each is a commit, SQLite's work included.

Compares with baseline.json and ends with 1 when a number differs from it by more than TOLERANCE; --write makes the baseline anew.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

FEW, MANY = 200, 600
EVENTS_FEW, EVENTS_MANY = 20, 220
TOLERANCE = 0.02
LASTS_SECONDS = 25
RECORDS_FEW, RECORDS_MANY = 2_000, 12_000

here = os.path.dirname(os.path.abspath(__file__))
baseline_path = os.path.join(here, "baseline.json")
work = tempfile.mkdtemp(prefix="codex-lb-instructions-")
# Valgrind 3.19 does not read the debug information that Swift writes.
binary, shim = os.path.join(work, "codex-lb"), os.path.join(work, "shim.so")
store_bench = os.path.join(sys.argv[1], "codex-lb-store-bench")
children = []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port, child, seconds):
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if child.poll() is not None or time.monotonic() > end:
                sys.exit(f"nothing listens on port {port}")
            time.sleep(0.05)


def end(child, seconds=60):
    child.terminate()
    code = child.wait(seconds)
    children.remove(child)
    return code


def start(arguments, **keywords):
    child = subprocess.Popen(arguments, **keywords)
    children.append(child)
    return child


def upstream(events):
    port = free_port()
    child = start([binary, "demo-upstream", "--listen", f"127.0.0.1:{port}", "--events", str(events), "--interval-ms", "0"], stdout=subprocess.DEVNULL)
    wait_port(port, child, 10)
    return port


class Server:
    """codex-lb with one worker; its child of this role runs under callgrind."""

    def __init__(self, role, upstream_port=None):
        self.data = tempfile.mkdtemp(dir=work)
        self.output = os.path.join(self.data, "callgrind.out")
        env = {
            "PATH": "/usr/bin:/bin", "HOME": self.data, "CODEX_LB_DATA_DIR": self.data, "CODEX_LB_LOG_LEVEL": "warning",
            # Tables of the same keys have the same order in every run.
            "SWIFT_DETERMINISTIC_HASHING": "1",
        }
        if upstream_port:
            subprocess.run([binary, "accounts", "add", "demo", "--base-url", f"http://127.0.0.1:{upstream_port}/v1", "--key-file", "/etc/hostname"],
                           env=env, check=True, stdout=subprocess.DEVNULL)
        self.port = free_port()
        self.child = start([binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--workers", "1"],
                           env={**env, "LD_PRELOAD": shim, "CALLGRIND_OUTPUT": self.output, "CALLGRIND_ROLE": role})
        for attempt in range(600):
            ready = subprocess.run([binary, "ctl", "status", "--json"], env=env, capture_output=True, text=True)
            if ready.returncode == 0 and json.loads(ready.stdout)["state"] == "serving":
                return
            if self.child.poll() is not None:
                sys.exit("codex-lb did not start under valgrind")
            time.sleep(0.1)
        sys.exit("codex-lb did not become ready under valgrind")

    def instructions(self):
        """Ends the server and tells what callgrind counted."""
        if end(self.child) != 0:
            sys.exit("codex-lb did not stop in order")
        found = re.search(r"^(?:summary|totals): (\d+)", open(self.output).read(), re.M)
        if not found:
            sys.exit(f"callgrind counted nothing in {self.output}")
        return int(found.group(1))


def rest(begin, what):
    seconds = begin + LASTS_SECONDS - time.monotonic()
    if seconds < 0:
        sys.exit(f"{what} took longer than {LASTS_SECONDS} s: the machine is too busy")
    time.sleep(seconds)


def count(upstream_port, body, turns):
    """Instructions of a worker that serves so many turns, one after the other, and then rests until its time is over."""
    server = Server("worker", upstream_port)
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    begin = time.monotonic()
    for _ in range(turns):
        client.request("POST", "/v1/responses", body, {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        if answer.status != 200:
            sys.exit(f"a turn ended with status {answer.status}")
    rest(begin, f"{turns} turns")
    client.close()
    return server.instructions()


def count_records(batch, records):
    """Instructions of the writer that stores so many records in such batches and then rests."""
    server = Server("writer")
    begin = time.monotonic()
    out = subprocess.run([store_bench, "--socket", server.data + "/run/writer.sock", "--batch", str(batch), "--depth", "1", "--records", str(records),
                          "--seconds", "60"], capture_output=True, text=True)
    if out.returncode != 0 or json.loads(out.stdout)["records"] != records:
        sys.exit(f"codex-lb-store-bench: {out.stdout}{out.stderr}")
    rest(begin, f"{records} records")
    return server.instructions()


def per_record(batch):
    return (count_records(batch, RECORDS_MANY) - count_records(batch, RECORDS_FEW)) / (RECORDS_MANY - RECORDS_FEW)


def per_turn(upstream_port, body):
    return (count(upstream_port, body, MANY) - count(upstream_port, body, FEW)) / (MANY - FEW)


def main():
    bin_dir, writes = sys.argv[1], "--write" in sys.argv[2:]
    subprocess.run(["strip", "-g", "-o", binary, os.path.join(bin_dir, "codex-lb")], check=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", shim, os.path.join(here, "role_under_callgrind.c"), "-ldl"],
                   check=True)
    found = {}
    if "--only=writer" not in sys.argv:
        few, many = upstream(EVENTS_FEW), upstream(EVENTS_MANY)
        streamed, plain = '{"model":"demo-1","input":"Hello","stream":true}', '{"model":"demo-1","input":"Hello","stream":false}'
        stream = per_turn(few, streamed)
        found[f"streamed turn of {EVENTS_FEW} events"] = round(stream)
        found["event"] = round((per_turn(many, streamed) - stream) / (EVENTS_MANY - EVENTS_FEW))
        found["JSON turn"] = round(per_turn(few, plain))
    if "--only=worker" not in sys.argv:
        for batch in (200, 20):
            found[f"writer's record, batches of {batch}"] = round(per_record(batch))
    known = json.load(open(baseline_path)) if os.path.exists(baseline_path) else {}
    is_off = False
    print(f"{'instructions':32} {'now':>10} {'baseline':>10} {'change':>8}")
    for name, now in found.items():
        before = known.get(name)
        change = now / before - 1 if before else None
        is_off = is_off or (change is not None and abs(change) > TOLERANCE)
        print(f"{name:32} {now:10} {before or '-':>10} {'-' if change is None else f'{change:+8.1%}':>8}")
    if writes:
        with open(baseline_path, "w") as file:
            file.write(json.dumps({**known, **found}, indent=4) + "\n")
        print(f"written: {baseline_path}")
    elif is_off:
        sys.exit(f"more than {TOLERANCE:.0%} off the baseline: find out why, or `make bench-instructions WRITE=1`")


try:
    main()
finally:
    for child in reversed(children):
        child.send_signal(signal.SIGKILL if child.poll() is None else 0) if child.poll() is None else None
        child.wait(10)
    shutil.rmtree(work, ignore_errors=True)
