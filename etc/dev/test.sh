#!/bin/sh
# All tests: builds, unit and integration tests in Swift, then the OpenAI SDK from PyPI as a client.
set -eu
cd "$(dirname "$0")/../.."
# The tests' own servers and clients share one process.
ulimit -n "$(ulimit -Hn)"
# Not --build-tests: that builds every product of every dependency too, protoc among them.
swift build --product codex-lbPackageTests
swift build --product codex-lb
CODEX_LB_TEST_BINARY="$(swift build --show-bin-path)/codex-lb"
export CODEX_LB_TEST_BINARY
CODEX_LB_TEST_TALLY=$(mktemp)
export CODEX_LB_TEST_TALLY
swift test --skip-build || failed=1
sh etc/dev/losses.sh "$CODEX_LB_TEST_TALLY"
rm -f "$CODEX_LB_TEST_TALLY"
[ "${failed:-0}" = 0 ]
[ -x .venv-test/bin/python ] || python3 -m venv .venv-test
.venv-test/bin/pip install --quiet --disable-pip-version-check -r Tests/SDK/requirements.txt
.venv-test/bin/python -m pytest -q Tests/SDK
