#!/bin/sh
# The wheel, as a stranger has it: a fresh environment, no clone beside it, a made-up log from files to ranked lists and a server.
# Usage: sh tests/wheel.sh dist/adrec-VERSION.whl
set -eu
wheel=$(realpath "$1")
constraints=$(realpath constraints.txt)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${DIST_PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --constraint "$constraints" "adrec[serve] @ file://$wheel"
adrec="$work/venv/bin/adrec"
"$adrec" doctor --quiet >/dev/null
"$adrec" sample --quiet --output log --impressions 3000 >/dev/null
"$adrec" init --quiet --output configs log >/dev/null
"$adrec" preprocess --quiet --config configs/preprocess.yaml >/dev/null
"$adrec" finetune --quiet --config configs/finetune.yaml --set text.reference=null --set training.epochs=1 --set seeds=1 --set ensemble=false >/dev/null
"$adrec" score --quiet --config configs/score.yaml >/dev/null
"$adrec" evaluate --quiet --config configs/evaluate.yaml >/dev/null
"$adrec" rank --quiet --config configs/rank.yaml --top-n 3 >/dev/null
"$adrec" serve --quiet --config configs/serve.yaml --port 8931 &
server=$!
for _ in $(seq 60); do
  sleep 1
  if "$work/venv/bin/python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8931/health/ready', timeout=2)" 2>/dev/null; then
    kill "$server"
    wait "$server" || true
    echo "the wheel works: $(basename "$wheel")"
    exit 0
  fi
done
kill "$server"
echo "the server of the wheel did not become ready" >&2
exit 1
