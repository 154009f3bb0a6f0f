#!/bin/sh
# The real units under a real systemd: a user manager in mount and cgroup namespaces of its own (root, cgroup 2). Starts the service by its
# socket, reloads it, kills its main process, stops it, while new connections come all the time, and prints what they met. $1: the program.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 PROGRAM" >&2; exit 2; }
program=$(realpath "$1")
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ "${IN_NAMESPACE:-}" != yes ]; then
    exec env IN_NAMESPACE=yes timeout -k 5 180 unshare --mount --cgroup --fork sh "$0" "$program"
fi
work=$(mktemp -d)
mount --make-rprivate /
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/codex-lb-test "$work/run" "$work/home/.config/systemd/user"
echo $$ >/sys/fs/cgroup/codex-lb-test/cgroup.procs
mkdir -p /run/systemd/system
export XDG_RUNTIME_DIR="$work/run" HOME="$work/home"
chmod 700 "$XDG_RUNTIME_DIR"
units=$HOME/.config/systemd/user
cp "$root/systemd/codex-lb.service" "$root/systemd/codex-lb.socket" "$units/"
mkdir "$units/codex-lb.service.d" "$units/codex-lb.socket.d"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# A user's manager has no other users, and the program is not installed.
cat >"$units/codex-lb.service.d/test.conf" <<END
[Service]
User=
Group=
ProtectHome=no
PrivateTmp=no
ProtectSystem=no
ExecStart=
ExecStart=$program serve
Environment=CODEX_LB_SETTINGS_FILE=-$work/settings.env
ExecReload=
ExecReload=$program ctl reload
END
echo CODEX_LB_WORKERS=2 >"$work/settings.env"
printf '[Socket]\nListenStream=\nListenStream=127.0.0.1:%s\n' "$port" >"$units/codex-lb.socket.d/test.conf"
/lib/systemd/systemd --user --log-target=console >"$work/manager.log" 2>&1 &
manager=$!
trap 'systemctl --user --no-block exit 2>/dev/null || kill $manager; rm -rf "$work"' EXIT
until systemctl --user is-system-running >/dev/null 2>&1 || [ "$(systemctl --user is-system-running 2>/dev/null)" = degraded ]; do sleep 0.1; done
python3 - "$port" "$work/settings.env" "$program" <<'END'
import json, os, socket, subprocess, sys, threading, time

port = int(sys.argv[1])
counts = {"good": 0, "refused": 0, "failed": 0}
longest = 0.0
over = threading.Event()


def ctl(*arguments):
    return subprocess.run(["systemctl", "--user", *arguments], capture_output=True, text=True, timeout=60)


def value(name):
    return ctl("show", "codex-lb.service", "--value", "-p", name).stdout.strip()


def client():
    global longest
    while not over.is_set():
        begin = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as s:
                s.settimeout(10)
                s.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b""
                while more := s.recv(4096):
                    answer += more
            counts["good" if b" 200 " in answer else "failed"] += 1
        except ConnectionRefusedError:
            counts["refused"] += 1
        except OSError:
            counts["failed"] += 1
        longest = max(longest, time.monotonic() - begin)
        time.sleep(0.005)


def phase(name, act):
    global longest
    before, longest = dict(counts), 0.0
    act()
    time.sleep(1)
    met = {k: counts[k] - before[k] for k in counts}
    print(f"{name:<28} good {met['good']:>5}, refused {met['refused']}, failed {met['failed']}, longest {longest:.2f} s", flush=True)
    return met


def until(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            sys.exit(ctl("status", "codex-lb.service", "--no-pager", "-l").stdout + "\n" + subprocess.getoutput("journalctl --user -n 30 --no-pager"))
        time.sleep(0.05)


assert ctl("start", "codex-lb.socket").returncode == 0
threads = [threading.Thread(target=client) for _ in range(4)]
bad = 0


def start():
    for thread in threads:
        thread.start()
    until(lambda: value("ActiveState") == "active" and "serving" in value("StatusText"))


def reload():
    done = ctl("reload", "codex-lb.service")
    assert done.returncode == 0, done.stderr


def reload_changed():
    with open(sys.argv[2], "w") as file:
        file.write("CODEX_LB_WORKERS=3\n")
    reload()
    environment = {**os.environ, "CODEX_LB_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"] + "/codex-lb"}
    status = json.loads(subprocess.check_output([sys.argv[3], "ctl", "status", "--json"], env=environment))
    assert status["workers"] == 3, status


def crash():
    pid = value("MainPID")
    subprocess.run(["kill", "-9", pid])
    until(lambda: value("MainPID") not in ("0", pid) and value("ActiveState") == "active")


for name, act in [("start by the socket", start)] + 3 * [("reload", reload)] + [("reload, changed settings", reload_changed)] + 3 * [("kill -9 of the main process", crash)]:
    met = phase(name, act)
    bad += met["refused"] + (met["failed"] if name != "kill -9 of the main process" else 0)
print("status: " + value("StatusText"), "restarts:", value("NRestarts"))
over.set()
for thread in threads:
    thread.join()
begin = time.monotonic()
assert ctl("stop", "codex-lb.socket", "codex-lb.service").returncode == 0
print(f"stop                         after {time.monotonic() - begin:.2f} s, {value('ActiveState')}, result {value('Result')}")
sys.exit(1 if bad or value("ActiveState") != "inactive" or value("Result") != "success" else 0)
END
