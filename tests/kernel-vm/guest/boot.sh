# Script for a system with systemd: /dev/vdb is the disk and /dev/vdc the cache of a set of ubcached, whose block device
# /etc/fstab mounts at /srv/data. A set of ubcache@two lies in /srv/below, and is mounted at /srv/above by way of nbd-client.
#   boot.sh first        makes the file systems; the daemons are killed and restarted below them
#   boot.sh after-stop   the end of the last life was in order, and everything is there again
#   boot.sh cut          power cut after a sync
#   boot.sh after-cut    what was synced is there
set -euo pipefail
. /run/vm/guest-lib.sh
is_active() { systemctl is-active --quiet "$1"; }
process() { systemctl show -p MainPID --value "$1"; }
has_other_process() { [ "$(process "$1")" != 0 ] && [ "$(process "$1")" != "$2" ] && is_active "$1"; }
is_mounted() {
    wait_until mountpoint -q "$1" || fail_with_journal "$1 is not mounted"
    [ "$(findmnt -no SOURCE "$1")" = "$2" ] || fail_with_journal "$1 is on $(findmnt -no SOURCE "$1")"
}
are_mounted() {
    is_mounted /srv/data /dev/ublkb0
    is_mounted /srv/above /dev/nbd0
}
# content MOUNT LINE...: the file system answers, and has every line.
content() {
    local mount=$1
    shift
    [ "$(xargs <"$mount/lines")" = "$*" ] || fail_with_journal "$mount has '$(xargs <"$mount/lines")' instead of '$*'"
}
add() { for mount in /srv/data /srv/above; do echo "$1" >>"$mount/lines"; done; sync; }

case $1 in
first)
    wait_until test -b /dev/ubcache/by-label/data || fail_with_journal "no link to the block device"
    [ -L /dev/ubcache/disk/by-label/data ] || fail_with_journal "no link to the disk"
    mkfs.ext4 -q /dev/ubcache/by-label/data
    systemctl start ubcache-nbd@nbd0.service || fail_with_journal "no /dev/nbd0"
    mkfs.ext4 -q /dev/nbd0
    cat /root/fstab >>/etc/fstab
    systemctl daemon-reload
    systemctl start srv-data.mount srv-above.mount || fail_with_journal "not mounted"
    are_mounted
    add made

    # A block device of ublk waits, and goes on.
    before=$(process ubcached)
    kill -9 "$before"
    echo killed >>/srv/data/lines
    sync /srv/data/lines
    wait_until has_other_process ubcached "$before" || fail_with_journal "not started again"
    before=$(process ubcached)
    systemctl restart ubcached || fail_with_journal "not restarted"
    has_other_process ubcached "$before" || fail_with_journal "it is the same daemon"
    echo restarted >>/srv/data/lines
    sync /srv/data/lines

    # Over nbd-client, everything is taken down and put up again.
    before=$(process ubcache@two)
    kill -9 "$before"
    wait_until has_other_process ubcache@two "$before" || fail_with_journal "not started again"
    wait_until is_active srv-above.mount || fail_with_journal "not mounted again"
    are_mounted
    echo killed >>/srv/above/lines
    sync /srv/above/lines
    echo 3 >/proc/sys/vm/drop_caches
    content /srv/data made killed restarted
    content /srv/above made killed
    ;;
after-stop)
    are_mounted
    content /srv/data made killed restarted
    content /srv/above made killed
    in_order -1 'Unmounted srv-data.mount' 'Stopping ubcached.service' || fail_with_journal "order at the end"
    in_order -1 'Unmounted srv-above.mount' 'Stopped ubcache-nbd@nbd0.service' 'Stopped ubcache@two.service' \
        'Unmounted srv-below.mount' || fail_with_journal "order at the end"
    in_order 0 'Started ubcached.service' 'Mounted srv-data.mount' || fail_with_journal "order at boot"
    in_order 0 'Mounted srv-below.mount' 'Started ubcache@two.service' 'Started ubcache-nbd@nbd0.service' \
        'Mounted srv-above.mount' || fail_with_journal "order at boot"
    ! journalctl -b -1 --no-pager -k -g 'I/O error.*ublkb|EXT4-fs error.*ublkb' || fail_with_journal "the kernel had errors"
    ! journalctl -b 0 --no-pager -g 'not cleanly' || fail_with_journal "a set was not stopped cleanly"
    add stopped
    # Another set is started by its first client.
    (
        cd /var/lib/ubcache
        ubcache make --bucket 64k --size 64M --label more -C c -B d >/dev/null
        echo 'OPTIONS=-C /var/lib/ubcache/c -B /var/lib/ubcache/d' >/etc/ubcache/three.env
    )
    systemctl start ubcache@three.socket || fail_with_journal "no socket"
    [ "$(nbdinfo --size 'nbd+unix:///more?socket=/run/ubcache/three.nbd')" = $(((64 << 20) - 8192)) ] || fail_with_journal "no export"
    is_active ubcache@three.service || fail_with_journal "not started by its client"
    ;;
cut)
    are_mounted
    add cut
    power_cut
    ;;
after-cut)
    are_mounted
    content /srv/data made killed restarted stopped cut
    content /srv/above made killed stopped cut
    echo "mounted at boot, unmounted before the daemons' end, over crashes, a restart and a power cut: RIGHT"
    ;;
esac
