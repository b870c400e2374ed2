# Script for a system with systemd: the guide's blocks of commands are in /root/guide, the package in /root.
#   first-hour.sh guide   runs them all
#   first-hour.sh again   after the reboot: mounted, with what was made durable
set -euo pipefail
. /run/vm/guest-lib.sh
export DEBIAN_FRONTEND=noninteractive HOME=/root
all_run() { systemctl --quiet is-active ubcached ubcache-nbd@nbd0 srv-data.mount; }
is_restarted() { [ "$(systemctl show -P NRestarts ubcached)" = 1 ]; }
says() { # says BLOCK WORDS
    grep -qF -- "$2" "$1.said" || fail_with_journal "'$2' is not in what $1 says: $(cat "$1.said")"
}
case $1 in
guide)
    cd /root
    ran=0
    for block in guide/??; do
        (set -eu; . "./$block") >"$block.said" 2>&1 </dev/null || fail_with_journal "$(cat "$block" "$block.said")"
        ran=$((ran + 1))
        case $(cat "$block") in
        'ubcache make'*) says "$block" backing ;;
        'cat > /etc/ubcache/data.toml'*) says "$block" '1 set good: data' ;;
        "echo 'OPTIONS="*) says "$block" ubcache_set_health ;;
        *--signal=KILL*)
            wait_until is_restarted || fail_with_journal "not started again"
            wait_until all_run || fail_with_journal "not all is there after the kill"
            ;;
        'systemctl is-active'*) says "$block" precious ;;
        'ubcache set --save'*) says "$block" 0.0k ;;
        esac
    done
    [ "$ran" = 9 ] || fail_with_journal "$ran blocks instead of 9"
    grep -q 'sequential_cutoff = .*0' /etc/ubcache/data.toml || fail_with_journal "not saved: $(cat /etc/ubcache/data.toml)"
    ;;
again)
    wait_until all_run || fail_with_journal "not mounted at boot"
    [ "$(cat /srv/data/precious)" = precious ] || fail_with_journal "precious is lost"
    in_order 0 'Started ubcached.service' 'Started ubcache-nbd@nbd0.service' 'Mounted srv-data.mount' || fail_with_journal "order at boot"
    in_order -1 'Unmounted srv-data.mount' 'Stopped ubcache-nbd@nbd0.service' 'Stopped ubcached.service' ||
        fail_with_journal "order at the end"
    ! journalctl -b 0 --no-pager -g 'not cleanly' || fail_with_journal "not stopped cleanly"
    ubcache status || fail_with_journal "not healthy"
    echo "the first hour, and a reboot: RIGHT"
    ;;
esac
