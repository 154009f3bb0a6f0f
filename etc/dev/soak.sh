#!/bin/sh
# What is too long for `make test`: every codec under a fuzzer for SOAK_SECONDS (60), then the unit tests of what reads bytes from outside
# or shares memory under the address and the thread sanitizer, then the bars of a release build. Stops at the first fault.
set -eu
cd "$(dirname "$0")/../.."
sh Tests/Fuzz/run.sh "${SOAK_SECONDS:-60}"
units='JSONWireTests|HTTPWireTests|InflateTests|ControlWireTests|ExchangeTests|TranslationTests|MeteringTests|PlatformTests|RoutingTests|AdmissionTests'
for sanitizer in address thread; do
    echo "== unit tests, $sanitizer sanitizer"
    swift test --sanitize="$sanitizer" --scratch-path ".build-$sanitizer" --filter "$units"
done
# The bars are those of a release build.
echo "== streams and connections, release build"
swift build -c release --product codex-lb --static-swift-stdlib
swift build --product codex-lbPackageTests
CODEX_LB_TEST_RELEASE=1 CODEX_LB_TEST_BINARY="$PWD/.build/release/codex-lb" \
    swift test --skip-build --filter 'Integration/Streams|Integration/Wire|Integration/Upstreams|Integration/LargeBodies'
