"""The store's part of the benchmark: writer and PostgreSQL throughput, start and backup of a large store.
Usage: store.py BIN_DIR SECONDS ROUNDS GIGABYTES (see run.sh). Prints medians; ratios are against a peer in the same run."""

import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

bin_dir, seconds, rounds, gigabytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
codex_lb, bench = os.path.join(bin_dir, "codex-lb"), os.path.join(bin_dir, "codex-lb-store-bench")
work = tempfile.mkdtemp(prefix="codex-lb-bench-")
os.chmod(work, 0o755)
pg_bin = "/usr/lib/postgresql/15/bin"
children = []


def environment(data):
    return {"PATH": os.environ["PATH"], "HOME": work, "CODEX_LB_DATA_DIR": data, "CODEX_LB_LOG_LEVEL": "warning"}


class Server:
    def __init__(self, data):
        self.data, self.env = data, environment(data)
        begin = time.monotonic()
        self.child = subprocess.Popen([codex_lb, "serve", "--listen", "127.0.0.1:0", "--workers", "1"], env=self.env)
        children.append(self.child)
        while True:
            done = subprocess.run([codex_lb, "ctl", "status", "--json"], env=self.env, capture_output=True, text=True)
            if done.returncode == 0 and json.loads(done.stdout)["state"] == "serving":
                break
            if self.child.poll() is not None or time.monotonic() - begin > 60:
                sys.exit("codex-lb did not become ready")
            time.sleep(0.005)
        self.ready_seconds = time.monotonic() - begin

    def stop(self):
        self.child.terminate()
        if self.child.wait(30) != 0:
            sys.exit("codex-lb did not stop in order")


def measure(*arguments):
    out = subprocess.run([bench, *arguments], capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"store-bench failed: {out.stderr}")
    return json.loads(out.stdout)


def medians(rows):
    return {key: statistics.median(r[key] for r in rows) for key in rows[0]}


def raw_sqlite(path, batch, span):
    """The peer: the same rows, schema and durability through Python's sqlite3 alone, one process, no acknowledgement to anybody."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA wal_autocheckpoint=4000")
    columns = 21
    insert = f"INSERT INTO usage_records VALUES ({','.join('?' * columns)})"
    tail = ("/v1/responses", "http", 1, 1, "req_0123456789abcdef", "gpt-5.4", "gpt-5.4-2026-03-05", 200, "", 1200, 800, 350, 120, 6400, 420,
            8300, 1, 40000, 22000)
    number, begin = 0, time.monotonic()
    while time.monotonic() - begin < span:
        now = int(time.time() * 1000)
        rows = []
        for _ in range(batch):
            number += 1
            rows.append(((now << 80 | 7 << 76 | number & 0xFFF << 64).to_bytes(16, "big")[:8] + number.to_bytes(8, "big"), now, *tail))
        db.execute("BEGIN IMMEDIATE")
        db.executemany(insert, rows)
        db.execute("COMMIT")
    span = time.monotonic() - begin
    db.close()
    return number / span


def sqlite_throughput():
    print(f"\n{'SQLite, synchronous=FULL':34} {'records/s':>10} {'raw sqlite3':>12} {'ratio':>6} {'ack p50 ms':>11} {'p99':>8} {'max':>8}")
    for batch in (1, 20, 200):
        ours, raw = [], []
        for _ in range(rounds):  # by turns, so that a noisy moment meets both
            data = tempfile.mkdtemp(dir=work)
            server = Server(data)
            ours.append(measure("--socket", data + "/run/writer.sock", "--batch", str(batch), "--depth", "4", "--seconds", seconds))
            server.stop()
            raw.append(raw_sqlite(data + "/store.db", batch, float(seconds)))
            shutil.rmtree(data)
        m, peer = medians(ours), statistics.median(raw)
        print(f"{'batches of ' + str(batch) + ', 4 on their way':34} {m['records_per_second']:10.0f} {peer:12.0f} "
              f"{m['records_per_second'] / peer:6.2f} {m['ack_p50_ms']:11.2f} {m['ack_p99_ms']:8.2f} {m['ack_max_ms']:8.2f}", flush=True)
    data = tempfile.mkdtemp(dir=work)
    server = Server(data)
    m = measure("--socket", data + "/run/writer.sock", "--batch", "50", "--depth", "16", "--seconds", seconds, "--rate", "20000")
    server.stop()
    print(f"{'20,000 records/s offered':34} {m['records_per_second']:10.0f} {'':12} {'':6} {m['ack_p50_ms']:11.2f} {m['ack_p99_ms']:8.2f} {m['ack_max_ms']:8.2f}")


def as_postgres(arguments, **kwargs):
    prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    return subprocess.run(prefix + arguments, check=True, stdout=subprocess.DEVNULL, **kwargs)


def postgres_throughput():
    directory = os.path.join(work, "pg")
    os.makedirs(directory)
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
    as_postgres([pg_bin + "/initdb", "-D", directory + "/data", "-U", "clb", "-A", "trust", "-E", "UTF8"])
    as_postgres([pg_bin + "/pg_ctl", "-D", directory + "/data", "-w", "-l", directory + "/log", "-o",
                 f"-k {directory} -c listen_addresses= -c max_wal_size=4GB", "start"])
    try:
        url = f"postgresql://clb@/clb?host={directory}"
        subprocess.run([pg_bin + "/createdb", "-h", directory, "-U", "clb", "clb"], check=True)
        env = environment(os.path.join(work, "pgdata"))
        subprocess.run([codex_lb, "db", "upgrade", "--url", url], env=env, check=True, stderr=subprocess.DEVNULL)
        print(f"\n{'PostgreSQL, one connection':34} {'records/s':>10} {'pgbench':>12} {'ratio':>6} {'ack p50 ms':>11} {'p99':>8} {'max':>8}")
        for batch in (1, 20, 200):
            # The peer: pgbench with one client and one multi-row INSERT of the same rows, unpipelined.
            script = os.path.join(work, "insert.sql")
            row = ("(decode(lpad(to_hex(nextval('n')), 32, '0'), 'hex'), 1764000000000, '/v1/responses', 'http', 1, 1, 'req_0123456789abcdef', "
                   "'gpt-5.4', 'gpt-5.4-2026-03-05', 200, '', 1200, 800, 350, 120, 6400, 420, 8300, 1, 40000, 22000)")
            open(script, "w").write("INSERT INTO usage_records VALUES " + ", ".join([row] * batch) + " ON CONFLICT (id) DO NOTHING;\n")
            subprocess.run([pg_bin + "/psql", "-qh", directory, "-U", "clb", "clb", "-c", "CREATE SEQUENCE IF NOT EXISTS n"], check=True,
                           stderr=subprocess.DEVNULL)
            ours, raw = [], []
            for _ in range(rounds):
                ours.append(measure("--postgres", url, "--batch", str(batch), "--depth", "8", "--seconds", seconds))
                out = subprocess.run([pg_bin + "/pgbench", "-h", directory, "-U", "clb", "-n", "-c", "1", "-T", str(max(1, int(float(seconds)))),
                                      "-f", script, "clb"], check=True, capture_output=True, text=True).stdout
                raw.append(float(next(l for l in out.splitlines() if l.startswith("tps")).split()[2]) * batch)
            m, peer = medians(ours), statistics.median(raw)
            print(f"{'batches of ' + str(batch) + ', 8 on their way':34} {m['records_per_second']:10.0f} {peer:12.0f} "
                  f"{m['records_per_second'] / peer:6.2f} {m['ack_p50_ms']:11.2f} {m['ack_p99_ms']:8.2f} {m['ack_max_ms']:8.2f}", flush=True)
    finally:
        as_postgres([pg_bin + "/pg_ctl", "-D", directory + "/data", "-m", "immediate", "stop"])


def fill(path, target_bytes):
    """Rows as the writer makes them, in the order of time."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.create_function("record_id", 1, lambda i: (1700000000000 + i).to_bytes(6, "big") + bytes([0x70, 0, 0x80]) + i.to_bytes(7, "big"))
    start = 0
    while os.path.getsize(path) < target_bytes:
        db.execute("BEGIN")
        db.execute("""
            WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ? + 199999)
            INSERT INTO usage_records SELECT record_id(i), 1700000000000 + i, '/v1/responses', 'http', i % 50, i % 20, 'req_' || hex(randomblob(8)),
              'gpt-5.4', 'gpt-5.4-2026-03-05', 200, '', 1200, 800, 350, 120, 6400, 420, 8300, 1, 40000, 22000 FROM n""", (start, start))
        db.execute("COMMIT")
        start += 200_000
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return start


def cold(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def large_store():
    data = tempfile.mkdtemp(dir=work)
    Server(data).stop()
    path = data + "/store.db"
    rows = fill(path, gigabytes * 2**30)
    size = os.path.getsize(path) / 2**30
    times = []
    for _ in range(rounds):
        cold(path)
        server = Server(data)
        times.append(server.ready_seconds)
        server.stop()
    print(f"\n{size:.2f} GiB, {rows} records: READY after {statistics.median(times):.3f} s, cold (bar 2 s)", flush=True)
    server = Server(data)
    time.sleep(1)
    load = subprocess.Popen([bench, "--socket", data + "/run/writer.sock", "--batch", "20", "--depth", "2", "--rate", "2000", "--seconds", "30"],
                            stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    begin = time.monotonic()
    subprocess.run([codex_lb, "db", "backup"], env=server.env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    span = time.monotonic() - begin
    m = json.loads(load.communicate()[0])
    print(f"backup of it under 2,000 records/s: {span:.1f} s; acknowledgement p50 {m['ack_p50_ms']:.2f}, p99 {m['ack_p99_ms']:.2f}, "
          f"max {m['ack_max_ms']:.0f} ms (bar 250 ms)")
    server.stop()


try:
    sqlite_throughput()
    postgres_throughput()
    large_store()
finally:
    for child in children:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
    shutil.rmtree(work, ignore_errors=True)
