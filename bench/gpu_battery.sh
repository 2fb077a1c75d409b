#!/usr/bin/env bash
# Everything that is measured on a CUDA device, in one command of at most fourteen minutes:
#
#   bench/gpu_battery.sh [FOLDER] [--only NAME,NAME] [--pack FILE.tgz] [--dry-run]      FOLDER: default bench/results
#
# The machine needs torch, Triton, nvcc, cmake, ninja, pybind11 and scikit-build-core, and no network. Each part
# (bench/gpu/__init__.py lists them) has a process and a time limit of its own: one that fails loses nothing else, and
# what there is no time for is named. Without a device the parts that need none run, the others say so.
#
# --only takes parts and groups. Where a command may run for ten minutes at most, the groups "checks" and "timings" can
# have one each, in this order, on one machine: the second finds what the first built. "training" runs only where it is
# asked for. Every part can be run alone, also as python -m bench.gpu.PART. LPN_FAST_BATTERY_SECONDS (840) is for all of
# a command, LPN_FAST_COMMIT names the sources where there is no git.
#
# FOLDER gets <device>_<part>.csv, choices.csv and table.csv (for kernels/triton/, after a look), logs/ and
# summary.txt, written as the parts end; --pack keeps all of it in one archive too, renewed after each part. The summary
# comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
out=bench/results dry="" only="" pack=""
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=--dry-run ;;
    --only) only=",${2:?--only needs names of parts or groups, see bench/gpu/__init__.py},"; shift ;;
    --pack) pack="$(realpath -m "${2:?--pack needs the name of an archive}")"; shift ;;
    -*) echo "usage: bench/gpu_battery.sh [FOLDER] [--only NAME,NAME] [--pack FILE.tgz] [--dry-run]" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
python="${PYTHON:-python3}"
limit="${LPN_FAST_BATTERY_SECONDS:-840}"
mkdir -p "$out/logs" && out="$(realpath "$out")" || exit 2
export PYTHONUNBUFFERED=1
: >"$out/summary.txt"
run_logs=()
if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  export PATH="/usr/local/cuda/bin:$PATH" # compute-sanitizer and cuobjdump lie there too
fi

# Name, what became of it; and the archive of everything so far.
say() {
  printf '%-18s%s\n' "$1" "$2" | tee -a "$out/summary.txt"
  if [ -n "$pack" ]; then
    mkdir -p "$(dirname "$pack")" && tar -czf "$pack.new" -C "$out" . && mv "$pack.new" "$pack"
  fi
}

# The package as installed into a folder of its own: nothing of the machine's Python is touched. What is there is of
# use as long as no source has changed.
build() {
  local site=$1 digest options=() capability
  digest="$(find CMakeLists.txt pyproject.toml csrc kernels lpn_fast -type f -not -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum; "$python" --version)"
  if [ "$(cat "$site/digest" 2>/dev/null)" = "$digest" ]; then
    say build "there already"
  else
    rm -rf "$site" && mkdir -p "$site" || exit 1
    # The device's own architecture is enough here, and half of the work.
    capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')"
    case $capability in
      [0-9]*) options+=("--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=$capability") ;;
    esac
    if timeout --kill-after=10 $((limit / 2)) "$python" -m pip --disable-pip-version-check install -v \
        --no-build-isolation --no-deps --no-index --config-settings=build-dir=build/battery-{wheel_tag} \
        "${options[@]}" --target "$site" . >"$out/logs/build.log" 2>&1 \
        </dev/null; then
      printf '%s' "$digest" >"$site/digest"
      say build "ok in $SECONDS s$(ls "$site"/lpn_fast/_cuda* >/dev/null 2>&1 || echo ', without the CUDA module')"
    else
      say build "FAILED after $SECONDS s, see logs/build.log: compiled backends are absent below"
      run_logs+=("$out/logs/build.log")
      rm -rf "${site:?}/lpn_fast"
      cp -r lpn_fast "$site/" && cp -r kernels "$site/lpn_fast/kernels"
    fi
  fi
  rm -rf "${site:?}/bench" && mkdir "$site/bench"
  find bench -mindepth 1 -maxdepth 1 -not -name results -exec cp -r {} "$site/bench/" \;
}

if [ -z "$dry" ]; then
  site="${LPN_FAST_BATTERY_SITE:-$PWD/build/battery}"
  build "$site"
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" LPN_FAST_SOURCE="$PWD"
  # The tuner may write: the table is a copy.
  export LPN_FAST_REWRITE_TABLE=1
  export LPN_FAST_COMMIT="${LPN_FAST_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}"
  [ -z "${LPN_FAST_DATA:-}" ] || LPN_FAST_DATA="$(realpath "$LPN_FAST_DATA")"
  cd "$site" || exit 1
fi

parts="$("$python" -c 'from bench.gpu import PARTS
for p in PARTS: print(p.name, p.seconds, p.group)')" || { say battery "FAILED: bench.gpu cannot be imported"; exit 1; }
while read -r part seconds group; do
  case $only in
    "") [ "$group" != training ] || continue ;;
    *",$part,"* | *",$group,"*) ;;
    *) continue ;;
  esac
  left=$((limit - SECONDS))
  if [ $left -lt 15 ]; then
    say "$part" "skipped: $limit s are over"
    continue
  fi
  [ "$seconds" -le $left ] || seconds=$left
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
  say "$part" "$state ($((SECONDS - limit + left)) s)"
done <<<"$parts"

for log in "${run_logs[@]}"; do
  echo "== $(basename "$log" .log)"
  grep -v '^ok' "$log" | cut -c 1-200 | tail -n 40
done
echo "== summary"
cat "$out/summary.txt"
! grep -q 'FAILED\|died' "$out/summary.txt"
