"""The store's part of the benchmark: writer and PostgreSQL throughput, start and backup of a large store.
Usage: store.py BIN_DIR SECONDS ROUNDS GIGABYTES [sqlite | postgres | large]... (see run.sh). Prints medians; ratios are against a peer in the same run."""

import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

here = os.path.dirname(os.path.abspath(__file__))
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


def raw_sqlite(path, batch):
    """The peer: see raw_sqlite.c."""
    out = subprocess.run([os.path.join(work, "raw_sqlite"), path, str(batch), seconds], capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(out.stderr)
    return float(out.stdout)


def writer_cpu(server):
    """Microseconds of CPU that the server's writer has taken, as user and in the kernel."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{pid}/stat").read()
        except OSError:
            continue
        name, fields = stat[stat.index("(") + 1:stat.rindex(")")], stat[stat.rindex(")") + 2:].split()
        if name == "codex-lb:writer" and int(fields[1]) == server.child.pid:
            return [int(ticks) * 1e6 / os.sysconf("SC_CLK_TCK") for ticks in fields[11:13]]
    sys.exit("there is no writer")


def through_writer(data, *arguments):
    server = Server(data)
    before = writer_cpu(server)
    found = measure("--socket", data + "/run/writer.sock", "--seconds", seconds, *arguments)
    found["user"], found["kernel"] = [(after - start) / max(1, found["records"]) for start, after in zip(before, writer_cpu(server))]
    server.stop()
    return found


def writer_line(name, m, peer=None):
    shown = f"{peer:12.0f} {m['records_per_second'] / peer:6.2f}" if peer else f"{'':12} {'':6}"
    print(f"{name:34} {m['records_per_second']:10.0f} {shown} {m['user']:8.1f} {m['kernel']:8.1f} "
          f"{m['ack_p50_ms']:11.2f} {m['ack_p99_ms']:8.2f} {m['ack_max_ms']:8.2f}", flush=True)


def sqlite_throughput():
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", os.path.join(work, "raw_sqlite"), os.path.join(here, "raw_sqlite.c"), "-lsqlite3"],
                   check=True)
    print(f"\n{'SQLite, synchronous=FULL':34} {'records/s':>10} {'raw sqlite3':>12} {'ratio':>6} {'µs user':>8} {'kernel':>8} "
          f"{'ack p50 ms':>11} {'p99':>8} {'max':>8}")
    for batch, depth in ((1, 1), (1, 4), (20, 1), (20, 4), (200, 4)):  # closed loop: the next batch when one is acknowledged
        ours, raw = [], []
        for _ in range(rounds):  # by turns, so that a noisy moment meets both
            data = tempfile.mkdtemp(dir=work)
            ours.append(through_writer(data, "--batch", str(batch), "--depth", str(depth)))
            raw.append(raw_sqlite(data + "/store.db", batch))
            shutil.rmtree(data)
        writer_line(f"batches of {batch}, {depth} on their way", medians(ours), statistics.median(raw))
    # Open loop: workers send when they have something.
    for name, arguments in (
        ("20,000 records/s, batches of 50", ("--batch", "50", "--depth", "16", "--rate", "20000")),
        ("2,000 records/s, one by one", ("--batch", "1", "--depth", "64", "--rate", "2000")),
        ("100 records/s, one by one", ("--batch", "1", "--depth", "16", "--rate", "100")),
    ):
        writer_line(name, medians([through_writer(tempfile.mkdtemp(dir=work), *arguments) for _ in range(rounds)]))


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
              'gpt-5.4', 'gpt-5.4-2026-03-05', 200, '', 1200, 800, 350, 120, 6400, 420, 8300, 1, 40000, 22000, NULL FROM n""", (start, start))
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


parts = {"sqlite": sqlite_throughput, "postgres": postgres_throughput, "large": large_store}
try:
    for part in [name for name in sys.argv[5:] if name in parts] or parts:
        parts[part]()
finally:
    for child in children:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
    shutil.rmtree(work, ignore_errors=True)
