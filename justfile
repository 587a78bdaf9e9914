# The targets people expect. `cargo xtask` does the work, so that nothing here is needed.

# What there is.
default:
    @just --list

# The program, with the agent inside.
build:
    cargo build --release --package sandpool

# Start the server in the foreground (root).
up *args: build
    ./target/release/sandpool up {{args}}

# The tests that need no release build.
test:
    cargo xtask ci --fast

# Everything that CI runs.
ci:
    cargo xtask ci

# Format, then lints.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings
    cargo xtask tidy

# Write snapshots and generated documents anew.
update:
    UPDATE_EXPECT=1 cargo test --workspace
