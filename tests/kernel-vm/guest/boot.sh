# Script for a system with systemd: /dev/vdb is the disk and /dev/vdc the cache of a set of ubcached, whose volume
# /etc/fstab mounts at /srv.
#   boot.sh first        makes the file system; the daemon is killed and restarted below it
#   boot.sh after-stop   the end of the last life was in order, and everything is there again
#   boot.sh cut          power cut after a sync
#   boot.sh after-cut    what was synced is there
set -euo pipefail
. /run/vm/guest-lib.sh
fail_with() {
    echo "$*"
    systemctl --failed --no-legend || true
    journalctl -b --no-pager -n 60 || true
    exit 1
}
is_active() { systemctl is-active --quiet "$1"; }
daemon() { systemctl show -p MainPID --value ubcached; }
has_other_daemon() { [ "$(daemon)" != 0 ] && [ "$(daemon)" != "$1" ] && is_active ubcached; }
# The file system answers, and has every line.
content() {
    [ "$(xargs </srv/lines)" = "$*" ] || fail_with "the lines are '$(xargs </srv/lines)' instead of '$*'"
}
is_mounted() {
    mountpoint -q /srv || fail_with "/srv is not mounted"
    [ "$(findmnt -no SOURCE /srv)" = /dev/ublkb0 ] || fail_with "/srv is on $(findmnt -no SOURCE /srv)"
}
# Lines of the last life, in their order.
last_life() { journalctl -b -1 --no-pager -o cat -u ubcached -u srv.mount; }
line_of() { last_life | grep -n -- "$1" | tail -n 1 | cut -d : -f 1; }

case $1 in
first)
    wait_until test -b /dev/ubcache/by-label/data || fail_with "no link to the block device"
    [ -L /dev/ubcache/disk/by-label/data ] || fail_with "no link to the disk"
    mkfs.ext4 -q /dev/ubcache/by-label/data
    systemctl start srv.mount || fail_with "not mounted"
    is_mounted
    echo made >>/srv/lines
    sync
    before=$(daemon)
    kill -9 "$before"
    echo killed >>/srv/lines
    sync # waits for the next daemon
    wait_until has_other_daemon "$before" || fail_with "not started again"
    is_mounted
    before=$(daemon)
    systemctl restart ubcached || fail_with "not restarted"
    has_other_daemon "$before" || fail_with "it is the same daemon"
    is_mounted
    echo restarted >>/srv/lines
    echo 3 >/proc/sys/vm/drop_caches
    content made killed restarted
    ;;
after-stop)
    is_mounted
    content made killed restarted
    # The restart of the first life stops the daemon as well, so the last stop is meant.
    unmounted=$(line_of 'Unmounted srv.mount') stopping=$(line_of 'Stopping ubcached.service')
    [ -n "$unmounted" ] && [ -n "$stopping" ] && [ "$unmounted" -lt "$stopping" ] || fail_with "order at the end: $(last_life)"
    ! journalctl -b -1 --no-pager -k | grep -E 'I/O error|EXT4-fs (error|warning)' || fail_with "the kernel had errors"
    echo stopped >>/srv/lines
    ;;
cut)
    is_mounted
    echo cut >>/srv/lines
    sync
    power_cut
    ;;
after-cut)
    is_mounted
    content made killed restarted stopped cut
    echo "mounted at boot, unmounted before the daemon's end, over a crash, a restart and a power cut: RIGHT"
    ;;
esac
