#!/bin/sh
# Puts edge-mdeq onto a Jetson with JetPack 6 or 7, beside JetPack's own TensorRT and OpenCV.
#
# A new environment is made under its final name, as scripts in it hold their interpreter's path;
# what changes hands at the very end is the link PREFIX/current. Until then whatever was there runs.
set -eu
umask 022 # a service of another user reads what is installed

usage() {
    cat <<'END'
usage: install.sh [options]

  --prefix DIR     where to; must be yours to write (default: /opt/edge-mdeq)
  --wheel PATH     a wheel, an sdist or a checkout of edge-mdeq (default: the checkout that this
                   script lies in, else the package index)
  --wheels DIR     for a board without a network: take all packages from this folder
  --extras LIST    what to install with it (default: onnxruntime,tensorrt)
  --bundle DIR     a bundle, NAME.mdeq, to try at the end
  --jetpack N      6 or 7, where /etc/nv_tegra_release is missing: while an image is built
  --force          install again even if the same is there
  --dry-run        say what would be done, and change nothing
  --help           this text

environment: PYTHON, the interpreter to use (default: /usr/bin/python3, whose packages are JetPack's)
END
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

ROOT=${EDGE_MDEQ_ROOT:-} # a folder that stands for this machine, as in the tests
PYTHON=${PYTHON:-/usr/bin/python3}
CUDA=$ROOT/usr/local/cuda
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

prefix=/opt/edge-mdeq wheel='' wheels='' extras=onnxruntime,tensorrt bundle='' jetpack=''
force=false dry=false new=''

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            --force) force=true ;;
            --dry-run) dry=true ;;
            --help | -h)
                usage
                exit 0
                ;;
            --prefix | --wheel | --wheels | --extras | --bundle | --jetpack)
                [ $# -gt 1 ] || usage_error "$1 needs a value"
                set_option "$1" "$2"
                shift
                ;;
            *) usage_error "unknown option $1" ;;
        esac
        shift
    done
}

set_option() {
    [ -n "$2" ] || usage_error "$1 needs a value"
    case $1 in
        --prefix) prefix=$2 ;;
        --wheel) wheel=$2 ;;
        --wheels) wheels=$2 ;;
        --extras) extras=$2 ;;
        --bundle) bundle=$2 ;;
        --jetpack) jetpack=$2 ;;
    esac
}

usage_error() {
    printf 'install.sh: %s; see install.sh --help\n' "$1" >&2
    exit 2
}

absolute() {
    case $1 in
        /*) say "$1" ;;
        *) say "$PWD/$1" ;;
    esac
}

wants_tensorrt() {
    case ,$extras, in
        *,tensorrt,*) return 0 ;;
        *) return 1 ;;
    esac
}

check_arguments() {
    prefix=$(absolute "$prefix")
    if [ -z "$wheel" ] && [ -f "$HERE/../../pyproject.toml" ]; then
        wheel=$(cd "$HERE/../.." && pwd)
    fi
    [ -z "$wheel" ] || wheel=$(absolute "$wheel")
    [ -z "$wheel" ] || [ -e "$wheel" ] || die "there is no $wheel; give --wheel a file that exists"
    [ -z "$wheels" ] || wheels=$(absolute "$wheels")
    [ -z "$wheels" ] || [ -d "$wheels" ] || die "$wheels is not a folder; give --wheels a folder of wheels"
    [ -z "$bundle" ] || bundle=$(absolute "$bundle")
    [ -z "$bundle" ] || [ -f "$bundle/manifest.json" ] ||
        die "$bundle is not a bundle (no manifest.json in it); copy NAME.mdeq as a whole"
    case $jetpack in
        '' | 6 | 7) ;;
        *) usage_error "--jetpack is 6 or 7, not $jetpack" ;;
    esac
}

# Sets jetpack and l4t.
find_jetpack() {
    release=$ROOT/etc/nv_tegra_release
    l4t=none
    if [ -r "$release" ]; then
        l4t=$(sed -n 's/^# *R\([0-9][0-9]*\).*REVISION: *\([0-9.]*\).*/\1.\2/p;q' "$release")
        [ -n "$l4t" ] || die "$release does not say which release it is; flash the board with JetPack"
    elif [ -z "$jetpack" ]; then
        die "this is not a Jetson (there is no $release). Elsewhere:
  python3 -m venv .venv && .venv/bin/pip install 'edge-mdeq[onnxruntime,camera]'
While an image for a Jetson is built, name its JetPack: --jetpack 6"
    fi
    [ -z "$jetpack" ] || return 0
    case ${l4t%%.*} in
        36) jetpack=6 ;;
        38 | 39) jetpack=7 ;;
        [0-9] | [0-2][0-9] | 3[0-5])
            die "L4T $l4t belongs to JetPack 5 or older, whose Python is too old; flash JetPack 6 or 7"
            ;;
        *) die "L4T $l4t is of a JetPack unknown to this script; try --jetpack 7" ;;
    esac
}

check_python() {
    [ -x "$PYTHON" ] || die "there is no $PYTHON; sudo apt-get install python3, or set PYTHON"
    python_version=$("$PYTHON" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    case $python_version in
        3.10.* | 3.11.* | 3.12.*) ;;
        *) die "$PYTHON is Python $python_version; 3.10 to 3.12 are supported: unset PYTHON" ;;
    esac
}

# Whether the system's Python has a module that came with Debian packages, or an image's own.
in_system() {
    for found in "$ROOT"/usr/lib/python3*/dist-packages/"$1"* \
        "$ROOT"/usr/local/lib/python3*/dist-packages/"$1"*; do
        [ ! -e "$found" ] || return 0
    done
    return 1
}

# Sets packages: those of Debian that are missing. Without any, neither sudo nor a network is needed.
find_packages() {
    packages=''
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
    in_system cv2 || packages="$packages nvidia-opencv" # JetPack's has GStreamer, pip's has not
    if wants_tensorrt; then
        in_system tensorrt || packages="$packages python3-libnvinfer"
        # pycuda is built here: no wheel fits every JetPack's CUDA
        [ -x "$CUDA/bin/nvcc" ] || packages="$packages nvidia-jetpack"
        command -v g++ >/dev/null || packages="$packages g++"
        header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
        [ -f "$header" ] || packages="$packages python3-dev"
    fi
    packages=${packages# }
}

install_packages() {
    [ -n "$packages" ] || return 0
    sudo=''
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    if $dry; then
        say "would run: ${sudo:+sudo }apt-get install $packages"
        return 0
    fi
    say "installing with apt: $packages"
    # shellcheck disable=SC2086  # a list of words
    if ! { $sudo apt-get update && $sudo apt-get install -y $packages; }; then
        die "apt-get failed; nothing else was changed. Is the board online, with NVIDIA's source in /etc/apt?"
    fi
}

# What an environment depends on; an equal one need not be made again.
fingerprint() {
    if [ -z "$wheel" ]; then
        say 'source: index'
    elif [ -d "$wheel" ]; then
        say "source: $(cd "$wheel" && find pyproject.toml edge_mdeq export runtime -type f \
            ! -path '*/__pycache__/*' -exec sha256sum {} + | LC_ALL=C sort | sha256sum)"
    else
        say "source: $(sha256sum <"$wheel")"
    fi
    say "extras: $extras"
    say "jetpack: $jetpack ($l4t)"
    say "python: $PYTHON $python_version"
    say "cuda: $(readlink -f "$CUDA" || say none)"
}

prepare_prefix() {
    mkdir -p "$prefix/environments" 2>/dev/null || true
    [ -w "$prefix/environments" ] || die "$prefix cannot be written to; make it yours:
  sudo install -d -o $(id -un) $prefix
or choose another place: --prefix ~/edge-mdeq"
    exec 9>>"$prefix/.lock"
    flock -n 9 || die "another installation into $prefix is running; wait for it"
    tidy # what a killed installation left
}

# Removes all environments but the current and the previous one.
tidy() {
    for folder in "$prefix"/environments/*; do
        case $folder in
            "$prefix/$(readlink "$prefix/current" || :)") ;;
            "$prefix/$(readlink "$prefix/previous" || :)") ;;
            *) rm -rf "$folder" ;;
        esac
    done
}

# A signal may come between the switch and what follows it: what is current stays.
undo() {
    [ -z "$new" ] || [ "$(readlink "$prefix/current")" = "environments/${new##*/}" ] || rm -rf "$new"
}

# What pip may not do in this environment, now and later: hide JetPack's OpenCV, or install a NumPy
# that the system's modules were not built for.
constrain() {
    major=$("$PYTHON" -s -c 'import numpy; print(numpy.__version__.split(".")[0])' 2>/dev/null || say 1)
    {
        say "numpy<$((major + 1))"
        for name in opencv-python opencv-python-headless opencv-contrib-python; do
            say "$name<0"
        done
    } >"$new/constraints.txt"
    printf '[install]\nconstraint = %s\n' "$new/constraints.txt" >"$new/pip.conf"
}

build() {
    new=$prefix/environments/$(date +%Y%m%d-%H%M%S)-$$
    trap undo EXIT
    trap 'exit 130' INT TERM HUP
    say "making $new"
    "$PYTHON" -m venv --system-site-packages "$new" ||
        die "no virtual environment could be made; what was there before is untouched"
    constrain
    set -- "${wheel:-edge-mdeq}[$extras]"
    [ -z "$wheels" ] || set -- --no-index --find-links "$wheels" "$@"
    say "installing $*"
    if wants_tensorrt; then say 'pycuda is built from source: some minutes'; fi
    pip_install "$@" ||
        die "pip failed, see above; what was there before is untouched.
Without a network: --wheels DIR. If it was pycuda: --extras onnxruntime does without, on the CPU"
    "$new/bin/python" -c 'import edge_mdeq, mdeq_runtime.doctor' ||
        die "edge-mdeq does not import, see above; what was there before is untouched"
    fingerprint >"$new/installed.txt"
}

# With CUDA's compiler in reach, by which pycuda's build finds the rest of CUDA, and without what lies
# in this user's home.
pip_install() {
    PYTHONNOUSERSITE=1 PATH="$CUDA/bin:$PATH" \
        "$new/bin/python" -m pip install --disable-pip-version-check "$@"
}

point() { # a link's name, and its target
    rm -f "$prefix/.$1"
    ln -s "$2" "$prefix/.$1"
    mv -T "$prefix/.$1" "$prefix/$1" # a rename: there is no moment without the link
}

switch_over() {
    old=$(readlink "$prefix/current" || :)
    point current "environments/${new##*/}"
    [ -z "$old" ] || point previous "$old"
    tidy
}

examine() {
    command=$prefix/current/bin/edge-mdeq
    PYTHONNOUSERSITE=1 "$command" doctor ${bundle:+"$bundle"} || {
        say "installed, but see above what is to be mended; then: $command doctor"
        exit 1
    }
    say "installed: $command"
    shown=${bundle:-NAME.mdeq}
    if wants_tensorrt; then say "next: $command engine $shown"; fi
    say "then: $command run $shown v4l2:///dev/video0 --headless    (or csi://0, rtsp://...)"
}

parse "$@"
check_arguments
find_jetpack
check_python
find_packages
say "JetPack $jetpack (L4T $l4t), Python $python_version, into $prefix"
$dry || install_packages
if ! $force && [ "$(fingerprint)" = "$(cat "$prefix/current/installed.txt" 2>/dev/null)" ]; then
    say 'the same is installed already (--force installs it again)'
    $dry || examine
    exit 0
fi
if $dry; then
    install_packages
    say "would make an environment in $prefix/environments with ${wheel:-edge-mdeq}[$extras]"
    say "would make it $prefix/current, and run edge-mdeq doctor${bundle:+ $bundle}"
    exit 0
fi
prepare_prefix
build
switch_over
examine
