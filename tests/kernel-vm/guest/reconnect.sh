# Guest script: the kernel's NBD client over `kill -9` of the daemon. /dev/vda is the disk, /dev/vdb the cache; both get formatted.
#   reconnect.sh KILLS
# nbd-client ends when the daemon does, even with -persist (3.24 on Linux 6.12), so a loop runs it again, as Restart=always would.
# Blocks of 4 KiB are written with fsync all the time, each with its number. At the end each block that was acknowledged has to be
# there. The last line says RIGHT or WRONG, and how many writes failed.
set -euo pipefail
. /lib/guest-lib.sh
kills=$1
served=0
serve() {
    served=$((served + 1))
    /share/ubcache serve -C /dev/vdb -B /dev/vda --nbd unix:/tmp/nbd --control /tmp/control --mode writeback \
        >"/tmp/serve$served" 2>>/tmp/log &
    server=$!
    wait_until grep -q ^ready "/tmp/serve$served" || { cat /tmp/log; exit 1; }
}
# block NUMBER: 4 KiB with the number in each line
block() { head -c 4096 < <(yes "$(printf '%015d' "$1")"); }

modprobe nbd
bcache_format /dev/vda /dev/vdb
serve
export=$(awk '$1 == "export" {print $2}' /tmp/serve1)
touch /tmp/attach
(
    while [ -e /tmp/attach ]; do
        nbd-client -unix /tmp/nbd -N "$export" -nonetlink -persist -nofork /dev/nbd0 >>/tmp/client 2>&1 || true
        echo ended >>/tmp/ended
        sleep 0.1
    done
) &
attached=$!
size() { cat /sys/block/nbd0/size; }
is_attached() { [ "$(size)" -gt 0 ]; }
wait_until is_attached
: >/tmp/written
: >/tmp/ended
: >/tmp/failed
touch /tmp/load
(
    number=0
    while [ -e /tmp/load ]; do
        number=$((number + 1))
        block "$number" >/tmp/block
        if dd if=/tmp/block of=/dev/nbd0 bs=4k seek=$((number % 4000)) oflag=direct conv=notrunc,fsync status=none 2>/tmp/why; then
            echo "$((number % 4000)) $number" >>/tmp/written
        else
            echo "$((number % 4000)) $number" >>/tmp/failed
            sleep 0.1
        fi
    done
) &
load=$!
lines() { wc -l </tmp/written; }
has_ended() { [ "$(wc -l </tmp/ended)" -gt "$1" ]; }
more_than() { [ "$(lines)" -gt "$1" ]; }
for ((kill = 0; kill < kills; kill++)); do
    wait_until more_than "$(($(lines) + 20))"
    kill -9 "$server"
    wait "$server" || true
    wait_until has_ended "$kill"
    sleep 0.$((kill * 3 % 10))
    before=$(lines)
    serve
    wait_until more_than "$before" || { echo "not connected again: $(cat /tmp/client /tmp/why)"; exit 1; }
done
rm /tmp/load
wait "$load"
# The newest number of each block; one whose write failed later may be there as well.
wrong=0 blocks=0
while read -r at number; do
    blocks=$((blocks + 1))
    dd if=/dev/nbd0 of=/tmp/found bs=4k skip="$at" count=1 iflag=direct status=none
    found=$(head -n 1 /tmp/found)
    found=$((10#$found))
    [ "$found" = "$number" ] || grep -qx "$at $found" /tmp/failed || wrong=$((wrong + 1))
done < <(awk '{newest[$1] = $2} END {for (at in newest) print at, newest[at]}' /tmp/written)
rm /tmp/attach
nbd-client -d /dev/nbd0 >/dev/null
wait "$attached"
/share/ubcache stop --control /tmp/control >/dev/null || true
wait
if [ "$wrong" = 0 ] && [ "$blocks" -gt 0 ]; then verdict=RIGHT; else verdict=WRONG; fi
echo "$kills kills: $blocks blocks, $wrong wrong, $(wc -l </tmp/failed) writes failed: $verdict"
