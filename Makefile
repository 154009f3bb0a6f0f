# make run    installs what is missing, builds, serves on 127.0.0.1:2455
# make demo   the same with a built-in upstream, in a temporary directory
# make soak   fuzzers and sanitizers, about 20 minutes
# make test   all tests         make bench  benchmarks against nginx and raw databases

SWIFT ?= swift
PREFIX ?= /usr/local
BIN := .build/release/codex-lb
PACKAGES := libuv1-dev libsqlite3-dev libpq-dev libssl-dev libzstd-dev zlib1g-dev
TEST_PACKAGES := $(PACKAGES) postgresql pgbouncer python3-venv curl sqlite3 zstd openssl faketime
BENCH_PACKAGES := $(PACKAGES) nginx-light postgresql

.PHONY: run demo build test soak bench format lint proto install clean

run: build
	exec $(BIN) serve

demo: build
	exec $(BIN) demo

build:
	@sh etc/dev/install-packages.sh $(PACKAGES)
	$(SWIFT) build -c release --product codex-lb --static-swift-stdlib

test:
	@sh etc/dev/install-packages.sh $(TEST_PACKAGES)
	sh etc/dev/test.sh

# SOAK_SECONDS: how long each fuzzer runs.
soak:
	@sh etc/dev/install-packages.sh $(TEST_PACKAGES)
	sh etc/dev/soak.sh

bench:
	@sh etc/dev/install-packages.sh $(BENCH_PACKAGES)
	$(SWIFT) build -c release --static-swift-stdlib
	sh Benchmarks/run.sh

format:
	$(SWIFT) format --in-place --recursive --parallel Package.swift Sources Tests Benchmarks

lint:
	$(SWIFT) format lint --strict --recursive --parallel Package.swift Sources Tests Benchmarks

# The generated code is committed; this makes it anew after a change of control.proto.
proto:
	$(SWIFT) build -c release --package-path .build/checkouts/swift-protobuf --product protoc-gen-swift
	protoc --plugin=.build/checkouts/swift-protobuf/.build/release/protoc-gen-swift \
	  --swift_opt=Visibility=Public --swift_opt=UseAccessLevelOnImports=true \
	  --swift_out=Sources/ControlWire -I Sources/ControlWire control.proto

install: build
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/codex-lb
	install -D -m 0644 etc/codex-lb.env $(DESTDIR)$(PREFIX)/share/codex-lb/codex-lb.env
	sed 's|/usr/local/|$(PREFIX)/|' systemd/codex-lb.service > .build/codex-lb.service
	install -D -m 0644 .build/codex-lb.service $(DESTDIR)$(PREFIX)/lib/systemd/system/codex-lb.service
	install -D -m 0644 systemd/codex-lb.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/codex-lb.socket

clean:
	rm -rf .build .build-* .venv
