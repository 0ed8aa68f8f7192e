#!/bin/sh
# How it was done before multi-stage builds: two Dockerfiles and a script that carries the program from one to the other.
set -eu
cd "$(dirname "$0")"
kiln="${KILN:-kiln}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$kiln" build -t hello:build --build-arg SUITE -f build.Dockerfile .
"$kiln" run --rm -v "$work:/out" hello:build cp /hello /out/hello
"$kiln" build -t "${1:-hello:2}" -f copy.Dockerfile "$work"
