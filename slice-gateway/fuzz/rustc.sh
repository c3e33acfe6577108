#!/bin/bash
# RUSTC_WRAPPER of `make fuzz`: leaves the arithmetic of cryptography without the fuzzer's instrumentation. Its branches
# say nothing about the input, and reporting each comparison took half the time of the target `gateway`.
set -euo pipefail
case ${CARGO_PKG_NAME:-} in
curve25519-dalek | subtle | blake2 | poly1305 | chacha20 | chacha20poly1305 | ring) ;;
*) exec "$@" ;;
esac
kept=()
for argument; do
    case $argument in
    -Cpasses=sancov-module | -Cllvm-args=-sanitizer-coverage-*) ;;
    *) kept+=("$argument") ;;
    esac
done
exec "${kept[@]}"
