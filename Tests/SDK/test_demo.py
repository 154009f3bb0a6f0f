"""What a newcomer sees: the demo starts, and the lines that it prints work as printed."""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time

from conftest import BINARY


def test_demo_prints_lines_that_work():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    demo = subprocess.Popen(
        [BINARY, "demo", "--listen", f"127.0.0.1:{port}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed, log = "", ""
        end = time.monotonic() + 30
        while " ready " not in log:
            assert time.monotonic() < end and demo.poll() is None, printed + log
            for stream in select.select([demo.stdout, demo.stderr], [], [], 1)[0]:
                text = os.read(stream.fileno(), 65536).decode()
                if stream is demo.stdout:
                    printed += text
                else:
                    log += text
        curls = re.findall(r"^\s+(curl .*)$", printed, re.M)
        assert len(curls) == 2, printed
        for line in curls:
            out = subprocess.run(line + " -sS --max-time 20", shell=True, capture_output=True, text=True)
            assert out.returncode == 0 and out.stdout.count("data: ") > 20, out
            assert "response.completed" in out.stdout or "[DONE]" in out.stdout
        requests = re.search(r"^\s+(CODEX_LB_DATA_DIR=.* requests)$", printed, re.M).group(1)
        end = time.monotonic() + 5
        while subprocess.run(requests, shell=True, capture_output=True, text=True).stdout.count(" demo-1 ") < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.killpg(demo.pid, signal.SIGINT)
        code = demo.wait(30)
        found = re.search(r"CODEX_LB_DATA_DIR=(\S+)", printed)
        is_left = found and os.path.exists(found.group(1))
        if is_left:
            shutil.rmtree(found.group(1), ignore_errors=True)
    assert code == 0 and not is_left


def test_demo_says_that_the_port_is_taken():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(1)
        port = s.getsockname()[1]
        demo = subprocess.run([BINARY, "demo", "--listen", f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=30)
    assert demo.returncode == 1 and str(port) in demo.stderr and "serves" not in demo.stdout, demo
