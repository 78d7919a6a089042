# What the scripts need beside a shell, and how it is had. Sourced by the others, never run.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
may_install=yes
packages=()

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# need PROGRAM PACKAGE: note the Debian package if the program is not there.
need() {
    command -v "$1" >/dev/null || packages+=("$2")
}

# Run as root: as we are, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo; as root run: $*"
    fi
}

# Install the noted packages, naming them first; with --no-install only name them.
install_needed() {
    [ ${#packages[@]} -gt 0 ] || return 0
    local list
    list=$(printf '%s\n' "${packages[@]}" | sort -u | tr '\n' ' ')
    [ "$may_install" = yes ] || die "missing packages: ${list}(Debian, Ubuntu: apt-get install ${list% })"
    command -v apt-get >/dev/null || die "missing programs; install what your system has for the Debian packages: $list"
    echo "${0##*/}: installing ${list% } with apt-get" >&2
    as_root apt-get update -qq >&2
    # shellcheck disable=SC2086 # the list is words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $list >&2
}

# Have cargo: of a toolchain that rustup left in its usual place, or of a new one.
have_cargo() {
    command -v cargo >/dev/null && return
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    command -v cargo >/dev/null && return
    local how="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt"
    [ "$may_install" = yes ] || die "cargo is missing; get it with: $how"
    need curl curl
    install_needed
    echo "${0##*/}: installing Rust with rustup from https://sh.rustup.rs" >&2
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt >&2
    command -v cargo >/dev/null || die "rustup ended, and cargo is still not found"
}

# A mount needs the kernel's part of FUSE.
have_fuse() {
    [ -e /dev/fuse ] || die "/dev/fuse is not there: modprobe fuse; in a container run it with --device /dev/fuse --cap-add SYS_ADMIN"
}
