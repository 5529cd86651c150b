# To be sourced by scripts in sh: makes and enters bare Debian systems of any release, as root.
# What is mounted for one lives in a namespace that ends with the command, so that rm never follows it.
#
#   bare_start NAME [FOLDER]        checks, and sets $work: where the systems are, until the script ends
#   bare_make SUITE SYSTEM          a bare system of that release in $work/SYSTEM
#   bare_sources SYSTEM             this checkout, without what was made of it, in SYSTEM's /src
#   bare_enter SYSTEM COMMAND...    runs it there; $bare_devices=1 gives it this machine's /dev and /sys

bare_cache=$PWD/build/bare-systems
# A day: a system that is not much older than its release's packages has little to fetch.
bare_cache_days=1

bare_start() {
    bare_name=$1
    [ "$(id -u)" = 0 ] || { echo "$bare_name: only root can make and enter a bare system" >&2; exit 1; }
    command -v mmdebstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq mmdebstrap; }
    work=$(realpath -m "${2:-$(mktemp -d)}")
    bare_systems=""
    mkdir -p "$work" "$bare_cache"
    trap bare_clean EXIT
    trap 'exit 1' INT TERM HUP
}

# Should that about mounts fail to hold, rm stops.
bare_clean() {
    if grep -q " $work/" /proc/self/mounts; then
        echo "$bare_name: something is mounted below $work; it is left as it is" >&2
        return
    fi
    for system in $bare_systems; do rm -rf --one-file-system "${work:?}/$system"; done
    rmdir --ignore-fail-on-non-empty "$work"
}

bare_make() {
    tar=$bare_cache/$1.tar root=$work/$2
    [ ! -e "$root" ] || { echo "$bare_name: $root is there already" >&2; exit 1; }
    (
        flock 9 # another script may be about to make the same
        [ -z "$(find "$tar" -mtime -$bare_cache_days 2>/dev/null)" ] || exit 0
        # A system that lasts for minutes need not survive a loss of power, nor translate descriptions.
        mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates \
            --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' "$1" "$tar.half"
        mv "$tar.half" "$tar"
    ) 9>"$tar.lock"
    bare_systems="$bare_systems $2"
    mkdir "$root"
    tar -xf "$tar" -C "$root"
    cp /etc/resolv.conf "$root/etc/"
    # No service is started: there is no init here.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    # This machine may reach registries through something that has a certificate of its own.
    for certificate in /usr/local/share/ca-certificates/*.crt; do
        [ ! -e "$certificate" ] || cp "$certificate" "$root/usr/local/share/ca-certificates/"
    done
    bare_enter "$2" update-ca-certificates >/dev/null 2>&1
}

bare_sources() {
    mkdir "$work/$1/src"
    tar -c --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=__pycache__ \
        --exclude='*.so' --exclude=_native.c --exclude='*.egg-info' . | tar -x -C "$work/$1/src"
}

# Of this machine's environment only how pip and apt reach their registries.
bare_enter() {
    root=$work/$1; shift
    # shellcheck disable=SC2046  # one word a variable: none of these has blanks
    unshare --mount --pid --fork --kill-child --propagation private sh -euc '
        root=$1 devices=$2; shift 2
        # The copies of mounts that are here would hold what a VM of local mode is to give back.
        umount --all --lazy --types fuse || true
        if [ "$devices" ]; then
            mount --rbind /dev "$root/dev"
            mount --rbind /sys "$root/sys"
            mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        fi
        mount -t proc proc "$root/proc"
        # As process 1 this shell takes what orphans leave.
        chroot "$root" "$@" & wait $!
        ' enter "$root" "${bare_devices-}" env -i \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root DEBIAN_FRONTEND=noninteractive \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
        $(env | grep -E '^(PIP_(INDEX_URL|EXTRA_INDEX_URL|DEFAULT_TIMEOUT)|[a-zA-Z]*_(proxy|PROXY))=') \
        "$@"
}
