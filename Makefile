# Two commands do everything, set-up included: `make demo` shows the idea at work, `make test` runs every test.
# The other targets are the parts of `make test`.

.PHONY: all demo test setup lint deny unit lab lane
.NOTPARALLEL:

all:
	cargo build --release

demo:
	@tests/lab/demo

test: setup lint deny unit lab lane

setup:
	@tests/lab/setup test

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	tests/lab/check-scripts

# Without cargo-deny this is skipped, but where THINORIGIN_REQUIRE=1 set-up has built it.
deny:
	@if cargo deny --version >/dev/null 2>&1; \
	then cargo deny --workspace check --hide-inclusion-graph licenses bans sources; \
	else echo "SKIPPED: deny: needs cargo-deny (cargo install --locked cargo-deny)"; fi

unit:
	tests/lab/unit

lab:
	tests/lab/selftest

lane:
	cargo build --workspace --bins --quiet
	tests/lab/run-lane
