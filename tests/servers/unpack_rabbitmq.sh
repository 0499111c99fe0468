#!/bin/sh
# unpack_rabbitmq.sh RELEASE FOLDER PATCHELF: RabbitMQ and its Erlang from another release of Debian, beside this system's.
#
# It comes from the mirror that this system uses, and checked as apt checks. Root is not needed, and nothing outside of
# FOLDER is touched: the programs are made to find the C library of their own release in there, by the program PATCHELF.
set -eu

release=$1 folder=$2 patchelf=$3
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial"
cd "$folder"

mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
keys=$(echo /usr/share/keyrings/debian-archive-keyring.*)
[ -n "$mirror" ] || { echo "E: this system has no packages from Debian" >&2; exit 1; }
echo "deb [signed-by=${keys%% *}] $mirror $release main" >apt/sources.list

apt() {
    apt-get --quiet --quiet -o Dir::State::lists="$folder/apt/lists" -o Dir::Etc::sourcelist="$folder/apt/sources.list" \
        -o Dir::Etc::sourceparts=- -o Dir::Cache="$folder/apt" -o APT::Sandbox::User=root "$@"
}
apt update
apt download rabbitmq-server libc6 libgcc-s1 libssl3t64 libstdc++6 libsystemd0 libcap2 libtinfo6 zlib1g \
    erlang-asn1 erlang-base erlang-crypto erlang-eldap erlang-inets erlang-mnesia erlang-os-mon erlang-parsetools \
    erlang-public-key erlang-runtime-tools erlang-ssl erlang-syntax-tools erlang-tools erlang-xmerl
for package in *.deb; do
    dpkg-deb --extract "$package" .
done
rm -rf apt ./*.deb etc usr/share var

"$patchelf" --version >/dev/null
libraries=$(echo "$folder"/usr/lib/*-linux-gnu)
find usr/lib/erlang -type f -perm -u+x | while read -r program; do
    if "$patchelf" --print-interpreter "$program" >/dev/null 2>&1; then
        "$patchelf" --set-interpreter "$(echo "$libraries"/ld-linux*.so.*)" --force-rpath --set-rpath "$libraries" "$program"
    fi
done
sed -i "s#ROOTDIR=/usr/lib/erlang#ROOTDIR=$folder/usr/lib/erlang#" usr/lib/erlang/bin/erl
