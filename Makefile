# make run    installs what is missing, builds, serves on 127.0.0.1:2455
# make demo   the same with a built-in upstream, in a temporary directory
# make soak   fuzzers and sanitizers (20 minutes), then reloads, upgrades and deaths under load (hours; SOAK_RATE requests per second)
# make test   all tests         make bench  benchmarks against nginx and raw databases
# make bench-instructions  instructions of a worker per turn and event, of the writer per record, against Benchmarks/baseline.json
# make install, make uninstall: program, man page, completions, systemd units and sample settings, under PREFIX and DESTDIR

SWIFT ?= swift
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
BIN := .build/release/codex-lb
# What `make install` installs; a program that is there already spares the build: make install BINARY=path
BINARY ?=
PACKAGES := libuv1-dev libsqlite3-dev libpq-dev libssl-dev libzstd-dev zlib1g-dev
TEST_PACKAGES := $(PACKAGES) postgresql pgbouncer python3-venv curl sqlite3 zstd openssl faketime mandoc systemd
BENCH_PACKAGES := $(PACKAGES) nginx-light postgresql openssl gcc

.PHONY: run demo build test soak bench bench-instructions format lint proto man install uninstall clean

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

# WRITE=1 makes the baseline anew; ONLY=worker or ONLY=writer counts one of them.
bench-instructions:
	@sh etc/dev/install-packages.sh $(PACKAGES) valgrind gcc binutils
	$(SWIFT) build -c release --product codex-lb --static-swift-stdlib
	$(SWIFT) build -c release --product codex-lb-store-bench --static-swift-stdlib
	python3 Benchmarks/instructions.py $$($(SWIFT) build -c release --static-swift-stdlib --show-bin-path) $(if $(WRITE),--write) $(if $(ONLY),--only=$(ONLY))

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

# The page's commands and options are the program's own; a test compares them.
man:
	python3 etc/dev/manpage.py $(or $(BINARY),$(BIN)) > docs/codex-lb.1

root = $(DESTDIR)$(PREFIX)
doc_dir = $(root)/share/doc/codex-lb
unit_dir = $(root)/lib/systemd/system
units = codex-lb.service codex-lb.socket codex-lb-proxy.socket codex-lb@.service codex-lb@.socket codex-lb-backup.service codex-lb-backup.timer
settings = $(DESTDIR)$(SYSCONFDIR)/codex-lb/codex-lb.env
bash_completion = $(root)/share/bash-completion/completions/codex-lb
zsh_completion = $(root)/share/zsh/site-functions/_codex-lb
fish_completion = $(root)/share/fish/vendor_completions.d/codex-lb.fish

install: program = $(or $(BINARY),$(BIN))
install: $(if $(BINARY),,build)
	install -D -m 0755 $(program) $(root)/bin/codex-lb
	install -D -m 0644 docs/codex-lb.1 $(root)/share/man/man1/codex-lb.1
	install -d $(doc_dir)/docs/decisions $(unit_dir) $(dir $(bash_completion) $(zsh_completion) $(fish_completion))
	install -m 0644 README.md SECURITY.md $(doc_dir)
	install -m 0644 docs/*.md $(doc_dir)/docs
	install -m 0644 docs/decisions/*.md $(doc_dir)/docs/decisions
	umask 022 && $(program) --generate-completion-script bash > $(bash_completion)
	umask 022 && $(program) --generate-completion-script zsh > $(zsh_completion)
	umask 022 && $(program) --generate-completion-script fish > $(fish_completion)
	umask 022 && for unit in $(units); do sed 's|/usr/local/|$(PREFIX)/|g' systemd/$$unit > $(unit_dir)/$$unit; done
	install -D -m 0644 systemd/sysusers.conf $(root)/lib/sysusers.d/codex-lb.conf
	install -D -m 0644 systemd/tmpfiles.conf $(root)/lib/tmpfiles.d/codex-lb.conf
	install -D -m 0644 systemd/notify-reload.conf $(root)/share/codex-lb/systemd/notify-reload.conf
	install -D -m 0644 etc/codex-lb.env $(root)/share/codex-lb/codex-lb.env
	[ -e $(settings) ] || install -D -m 0600 etc/codex-lb.env $(settings)

# Settings that somebody has changed stay, and so do the service's data.
uninstall:
	rm -f $(root)/bin/codex-lb $(root)/share/man/man1/codex-lb.1 $(addprefix $(unit_dir)/,$(units))
	rm -f $(root)/lib/sysusers.d/codex-lb.conf $(root)/lib/tmpfiles.d/codex-lb.conf
	rm -f $(bash_completion) $(zsh_completion) $(fish_completion)
	! cmp -s etc/codex-lb.env $(settings) || rm $(settings)
	[ ! -d $(dir $(settings)) ] || rmdir --ignore-fail-on-non-empty $(dir $(settings))
	rm -rf $(root)/share/codex-lb $(doc_dir)

clean:
	rm -rf .build .build-* .venv
