#!/usr/bin/env bash
# Everything that is measured on a CUDA device, in one command of at most nine minutes:
#
#   bench/gpu_battery.sh [FOLDER] [--dry-run] [--only PART,PART]       FOLDER defaults to bench/results
#
# The machine needs torch, Triton, nvcc, cmake, ninja, pybind11 and scikit-build-core, and no network. Each part
# (bench/gpu/__init__.py lists them) has a process and a time limit of its own: one that fails loses nothing else, and
# what there is no time for is named. Without a device the parts that need none run, the others say so. Every part can
# be run alone: --only, or python -m bench.gpu.PART. LPN_FAST_BATTERY_SECONDS (540) is for all of it.
#
# FOLDER gets <device>_<part>.csv, *_admitted.csv, choices.csv and table.csv (for kernels/*/, after a look), logs/ and
# summary.txt, written as the parts end. The summary comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
out=bench/results dry="" only=""
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=--dry-run ;;
    --only) only=",${2:?--only needs names of parts, see bench/gpu/__init__.py},"; shift ;;
    -*) echo "usage: bench/gpu_battery.sh [FOLDER] [--dry-run] [--only PART,PART]" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
python="${PYTHON:-python3}"
limit="${LPN_FAST_BATTERY_SECONDS:-540}"
mkdir -p "$out/logs" && out="$(realpath "$out")" || exit 2
export PYTHONUNBUFFERED=1
: >"$out/summary.txt"
run_logs=()

say() {
  printf '%-16s%s\n' "$1" "$2" | tee -a "$out/summary.txt"
}

if [ -z "$dry" ]; then
  # Into a folder of its own: nothing of the machine's Python is touched, and the source tree holds no binaries.
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  options=()
  # The device's own architecture is enough here, and half of the work.
  capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')"
  case $capability in
    [0-9]*) options+=("--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=$capability") ;;
  esac
  if timeout --kill-after=10 $((limit / 2)) "$python" -m pip --disable-pip-version-check install -v \
      --no-build-isolation --no-deps --no-index "${options[@]}" --target "$site" . >"$out/logs/build.log" 2>&1; then
    say build "ok in $SECONDS s"
  else
    say build "FAILED after $SECONDS s, see logs/build.log: compiled backends are absent below"
    rm -rf "$site/lpn_fast"
    cp -r lpn_fast "$site/" && cp -r kernels "$site/lpn_fast/kernels"
  fi
  run_logs+=("$out/logs/build.log")
  cp -r bench "$site/bench"
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" LPN_FAST_SOURCE="$PWD"
  # The tuner may write: the table is a copy.
  export LPN_FAST_REWRITE_TABLE=1
  LPN_FAST_COMMIT="$(git describe --always --dirty 2>/dev/null || echo unknown)"
  export LPN_FAST_COMMIT
  cd "$site" || exit 1
fi

parts="$("$python" -c 'from bench.gpu import PARTS
for p in PARTS: print(p.name, p.seconds)')" || { say battery "FAILED: bench.gpu cannot be imported"; exit 1; }
while read -r part seconds; do
  [ -z "$only" ] || case $only in *",$part,"*) ;; *) continue ;; esac
  left=$((limit - SECONDS))
  if [ $left -lt 15 ]; then
    say "$part" "skipped: $limit s are over"
    continue
  fi
  [ $seconds -le $left ] || seconds=$left
  log="$out/logs/$part.log"
  run_logs+=("$log")
  most=$((seconds * 3 / 2 < left ? seconds * 3 / 2 : left))
  timeout --kill-after=10 $most "$python" -m "bench.gpu.$part" --out "$out" --seconds "$seconds" $dry >"$log" 2>&1 </dev/null
  code=$?
  case $code in
    0) state="ok, $(grep -c '^ok' "$log") checks" ;;
    1)
      failed=$(grep -c '^FAILED' "$log")
      state="FAILED: $failed checks, see logs/$part.log"
      [ "$failed" -gt 0 ] || state="died: $(tail -n 1 "$log")"
      ;;
    3) state="skipped: $(tail -n 1 "$log" | sed "s/^$part: //")" ;;
    124 | 137) state="stopped after $most s; what it had is kept" ;;
    *) state="died with code $code: $(tail -n 1 "$log")" ;;
  esac
  say "$part" "$state"
done <<<"$parts"

for log in "${run_logs[@]}"; do
  echo "== $(basename "$log" .log)"
  grep -v '^ok' "$log" | cut -c 1-200 | tail -n 40
done
echo "== summary"
cat "$out/summary.txt"
! grep -q 'FAILED\|died' "$out/summary.txt"
