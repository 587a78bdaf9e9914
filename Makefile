# The targets people expect. `cargo xtask` does the work, so that nothing here is needed.

PREFIX ?= /usr/local

.PHONY: all build test check ci lint update install

all: build

build:
	cargo build --release --package sandpool

test:
	cargo xtask ci --fast

check ci:
	cargo xtask ci

lint:
	cargo fmt --all
	cargo clippy --workspace --all-targets -- -D warnings
	cargo xtask tidy

update:
	UPDATE_EXPECT=1 cargo test --workspace

install: build
	install -D -m 0755 target/release/sandpool $(DESTDIR)$(PREFIX)/bin/sandpool
