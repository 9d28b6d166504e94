#!/bin/sh
# Resolve the dependencies of pyproject.toml into locks/. Versions already locked are kept where they still fit;
# `scripts/lock.sh --upgrade` takes the newest.
# Why requirements files and not uv.lock: docs/decisions/0001-locked-dependencies.md
set -eu
cd "$(dirname "$0")/.."

lock() { # OUTPUT WHAT…
    output=$1
    shift
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file "$output" "$@"
    echo "$output: $(grep -c == "$output") packages"
}

lock locks/dev.txt pyproject.toml --group dev "$@"
lock locks/run.txt pyproject.toml --constraint locks/dev.txt "$@" # for the image
lock locks/go.txt --group go "$@"
