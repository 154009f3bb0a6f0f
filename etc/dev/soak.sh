#!/bin/sh
# What is too long for `make test`: every codec under a fuzzer for SOAK_SECONDS (60), then the unit tests of what reads bytes from outside
# or shares memory under the address and the thread sanitizer, then the bars of a release build, then an hour or two of reloads, upgrades and
# deaths under load (SOAK_RATE: requests per second, 500), whose counts are the table at the end. Stops at the first fault.
set -eu
cd "$(dirname "$0")/../.."
sh Tests/Fuzz/run.sh "${SOAK_SECONDS:-60}"
units='JSONWireTests|HTTPWireTests|InflateTests|ControlWireTests|ExchangeTests|TranslationTests|MeteringTests|PlatformTests|RoutingTests|AdmissionTests'
for sanitizer in address thread; do
    echo "== unit tests, $sanitizer sanitizer"
    swift test --sanitize="$sanitizer" --scratch-path ".build-$sanitizer" --filter "$units"
done
echo "== the fleet, 60 seeds"
CODEX_LB_TEST_FLEET_SEEDS=60 swift test --filter FleetSimulation
# The bars are those of a release build.
echo "== streams and connections, release build"
swift build -c release --product codex-lb --static-swift-stdlib
swift build --product codex-lbPackageTests
CODEX_LB_TEST_RELEASE=1 CODEX_LB_TEST_BINARY="$PWD/.build/release/codex-lb" \
    swift test --skip-build --filter \
    'Integration/(Streams|Wire|Upstreams|LargeBodies|Stops|Keys|Shapes|PostgresShared)|Integration/Reloads/(brokenSettings|unreachable)'
# Namespaces and a cgroup tree of its own are root's.
if [ "$(id -u)" = 0 ] && [ -x /lib/systemd/systemd ]; then
    echo "== the units under a real systemd"
    sh etc/dev/systemd-user.sh .build/release/codex-lb
fi
# The full forms of issue 11's tests.
echo "== reloads, upgrades, deaths"
CODEX_LB_TEST_TALLY=$(mktemp)
export CODEX_LB_TEST_TALLY
CODEX_LB_TEST_BINARY="$PWD/.build/release/codex-lb" CODEX_LB_TEST_RATE="${SOAK_RATE:-500}" \
    CODEX_LB_TEST_RELOADS=1000 CODEX_LB_TEST_STREAMS=200 CODEX_LB_TEST_STREAM_RELOADS=20 CODEX_LB_TEST_SCALES=25 \
    CODEX_LB_TEST_UPGRADES=20 CODEX_LB_TEST_SUPERVISOR_KILLS=20 CODEX_LB_TEST_WORKER_KILLS=100 \
    CODEX_LB_TEST_CRASH_SECONDS=60 CODEX_LB_TEST_WRITER_KILLS=100 CODEX_LB_TEST_LAST_BYTE_KILLS=100 CODEX_LB_TEST_EMFILE_ROUNDS=20 \
    CODEX_LB_TEST_FLAT_SECONDS=1200 CODEX_LB_TEST_FLAT_RELOAD_SECONDS=10 \
    swift test --skip-build --filter 'Integration/Reloads|Integration/Upgrades|Integration/Losses' || failed=1
sh etc/dev/losses.sh "$CODEX_LB_TEST_TALLY"
rm -f "$CODEX_LB_TEST_TALLY"
exit "${failed:-0}"
