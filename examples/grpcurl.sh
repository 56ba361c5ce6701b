#!/usr/bin/env bash
# Ask a running server with grpcurl: examples/grpcurl.sh "How do I use grpcurl?" [HOST:PORT]
#
# The server describes itself by reflection, so that no stubs and no contract are needed.
set -euo pipefail
query=${1:?usage: examples/grpcurl.sh QUERY [HOST:PORT]}
target=${2:-localhost:50051}

# As a JSON string: a query may hold quotes.
json() { printf '%s' "$1" | python3 -c 'import json, sys; print(json.dumps(sys.stdin.read()))'; }

grpcurl -plaintext -max-time 10 "$target" list
grpcurl -plaintext -max-time 10 "$target" cognate.v1.InfoService/GetInfo
grpcurl -plaintext -max-time 10 -d "{\"queries\": [{\"text\": $(json "$query")}], \"top_k\": 5}" \
  "$target" cognate.v1.SearchService/Search
