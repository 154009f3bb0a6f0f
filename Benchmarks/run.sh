#!/bin/sh
# codex-lb against nginx as a plain reverse proxy, in one run: same upstream, same load generator, one worker each on one core.
# The proxy has CPU 1; upstream and load generator share CPU 0. Accounting is on. SECONDS_EACH and ROUNDS may be set.
set -eu
cd "$(dirname "$0")/.."
bin=$(swift build -c release --static-swift-stdlib --show-bin-path)
seconds=${SECONDS_EACH:-4}
rounds=${ROUNDS:-3}
exec python3 Benchmarks/run.py "$bin" "$seconds" "$rounds"
