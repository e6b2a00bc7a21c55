# The same steps as tests/run.sh, one by one. Everything here is a plain command
# that works without just, too.

# What CI runs
check:
    tests/run.sh

# What needs no cluster
fast:
    tests/run.sh --fast

# With what takes longer
full:
    tests/run.sh --full

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

doc:
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked

test:
    cargo test --workspace --locked

# Whole programs on real clusters (root)
cluster-test *ARGS:
    tests/cluster/cluster build all
    cargo build -p towline-gateway -p towline-agent -p towline --locked
    cargo test -p tests --features cluster --locked {{ARGS}}

# Licences, advisories, duplicates, sources (cargo install cargo-deny)
deny:
    cargo deny --locked check

# The scripts (shellcheck)
scripts:
    shellcheck -x tests/run.sh .ci/run deploy/quickstart.sh tests/bench/run.sh tests/prerequisites.sh tests/cluster/cluster

# Figures (root)
bench *ARGS:
    tests/bench/run.sh {{ARGS}}

up *ARGS:
    deploy/quickstart.sh up {{ARGS}}

down:
    deploy/quickstart.sh down
