#!/usr/bin/env bash
# Everything that is measured on a CUDA device, in one command of at most nine minutes:
#
#   bench/gpu_battery.sh [FOLDER] [--dry-run]      FOLDER defaults to bench/results
#
# The machine needs torch, Triton, nvcc, cmake, ninja, pybind11 and scikit-build-core, and no network. Each part
# (bench/gpu/__init__.py lists them) has a process and a time limit of its own: one that fails loses nothing else.
# LPN_FAST_REWRITE_TABLE=1 lets the tuner rewrite kernels/triton/table.csv. The summary comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:-bench/results}"
dry="${2:-}"
python="${PYTHON:-python3}"
mkdir -p "$out/logs"
export PYTHONUNBUFFERED=1
summary=()

if [ -z "$dry" ]; then
  # Into a folder of its own: nothing of the machine's Python is touched, and the source tree holds no binaries.
  site="$(mktemp -d)"
  if timeout 200 "$python" -m pip install -q --no-build-isolation --no-deps --no-index --target "$site" . \
      >"$out/logs/build.log" 2>&1; then
    summary+=("build         ok")
  else
    summary+=("build         FAILED, see logs/build.log: compiled backends are absent below")
    cp -r lpn_fast "$site/" && cp -r kernels "$site/lpn_fast/kernels"
  fi
  cp -r bench "$site/bench"
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
  out="$(realpath "$out")"
  export LPN_FAST_COMMIT="$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  cd "$site" || exit 1
fi

while read -r part seconds; do
  log="$out/logs/$part.log"
  timeout --kill-after=10 $((seconds * 3 / 2)) "$python" -m "bench.gpu.$part" --out "$out" $dry >"$log" 2>&1
  code=$?
  case $code in
    0) state=ok ;;
    1) state="FAILED: $(grep -c '^FAILED' "$log") checks, see logs/$part.log" ;;
    3) state="nothing to measure: $(tail -n 1 "$log")" ;;
    124 | 137) state="stopped after $((seconds * 3 / 2)) s; what it had is kept" ;;
    *) state="died with code $code: $(tail -n 1 "$log")" ;;
  esac
  summary+=("$(printf '%-14s%s' "$part" "$state")")
done < <("$python" -c 'from bench.gpu import PARTS
for p in PARTS: print(p.name, p.seconds)')

for log in "$out"/logs/*.log; do
  echo "== $(basename "$log" .log)"
  grep -v '^ok' "$log" | tail -n 45
done
echo "== summary"
printf '%s\n' "${summary[@]}"
case "${summary[*]}" in *FAILED* | *died*) exit 1 ;; esac
