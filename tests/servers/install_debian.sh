#!/bin/sh
# install_debian.sh PACKAGE: as root, install a server's package, and leave no service of it running, now or after a boot.
# Debian starts a service when its package is installed, unless policy-rc.d says 101, "not allowed".
set -eu

package=$1
policy=/usr/sbin/policy-rc.d

if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$package"
}

# A new container has no lists yet, and an old one has lists of packages that are no longer served.
install 2>/dev/null || { apt-get update --quiet --quiet && install; }

if [ -d /run/systemd/system ]; then
    systemctl disable --quiet --now "$package"
fi
