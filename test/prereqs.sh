#!/bin/bash
# Makes sure that the Debian packages which a make target needs are there.
#
#   test/prereqs.sh check|demo|test|bench
#
# Root installs what is missing, after saying what it is; anybody else is told.
# On a machine without dpkg it only says what the target needs.
set -euo pipefail

case "${1:-}" in
check) want="protobuf-compiler" ;;
demo) want="xfsprogs e2fsprogs util-linux mount" ;;
bench) want="xfsprogs e2fsprogs util-linux mount fio" ;;
# gcc and libc6-dev are for the race detector.
test) want="xfsprogs btrfs-progs e2fsprogs util-linux mount fio libnbd-bin python3-libnbd qemu-utils gcc libc6-dev" ;;
*)
	echo "usage: $0 check|demo|test|bench" >&2
	exit 2
	;;
esac

if ! command -v dpkg-query >/dev/null; then
	echo "prerequisites of 'make $1', as Debian calls them: $want"
	exit 0
fi

missing=""
for package in $want; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing="$missing $package"
done
missing=${missing# }
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "missing Debian packages: $missing" >&2
	echo "install them with: sudo apt-get install $missing" >&2
	exit 1
fi
echo "installing missing Debian packages: $missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists may be missing or old: refresh them when an install fails.
# shellcheck disable=SC2086
if ! apt-get install -y --no-install-recommends $missing </dev/null >"$log" 2>&1; then
	if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } </dev/null >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		echo "could not install: $missing" >&2
		exit 1
	fi
fi
