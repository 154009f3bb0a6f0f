#!/bin/sh
# codex-lb against nginx as a plain reverse proxy, in one run: same upstream, same load generator, one core for each proxy (see run.py).
# Then the store: writer and PostgreSQL throughput, start and backup of a store of GIGABYTES. SECONDS_EACH and ROUNDS may be set.
# Then one choice of an account, in nanoseconds.
# ONLY=http, ONLY=store or ONLY=routing runs one of them; CASES="turns tls bodies long open sticky delay" or CASES="sqlite postgres large" some of its parts.
set -eu
cd "$(dirname "$0")/.."
bin=$(swift build -c release --static-swift-stdlib --show-bin-path)
seconds=${SECONDS_EACH:-4}
rounds=${ROUNDS:-3}
if [ "${ONLY:-http}" = http ]; then
    python3 Benchmarks/run.py "$bin" "$seconds" "$rounds" ${CASES:-}
fi
if [ "${ONLY:-store}" = store ]; then
    python3 Benchmarks/store.py "$bin" "$seconds" "$rounds" "${GIGABYTES:-1}" ${CASES:-}
fi
if [ "${ONLY:-routing}" = routing ]; then
    "$bin/codex-lb-routing-bench"
fi
