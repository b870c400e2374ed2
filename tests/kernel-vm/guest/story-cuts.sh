# Guest script: the experiments of docs/internals/coherence.md §12 that end in a power cut; see story-lib.sh.
#   story-cuts.sh WHO LOOK CUT
# LOOK is the experiment of the boot before, with the same disks, of which the result is looked at; CUT the one that is done
# in this boot; or - for none.
set -euo pipefail
who=$1 look=$2 cut=$3
. /share/story-lib.sh

block_of() { # each experiment has blocks of its own
    case $1 in 3a) echo 1024 ;; 3b) echo 2048 ;; 3c) echo 3072 ;; 3d) echo 4096 ;; 3e) echo 5120 ;; 3f) echo 6144 ;; esac
}

# cached BLOCK: eight blocks of aa are in the cache, clean, and in its index for good: by reads alone, as the driver replays
# removals that are in its journal, and by a stop, which writes the nodes. Checked with a backing disk that fails.
cached() {
    /share/blocks write /dev/vda $(($1 + data)) 8 aa >/dev/null
    start
    mode writearound
    for block in $(seq "$1" $(($1 + 7))); do get "$block" >/dev/null; done
    stop
    start
    mode writearound
    table backing "0 $sectors error"
    for block in $(seq "$1" $(($1 + 7))); do
        [ "$(get "$block")" = aa ] || { echo "$cut: block $block is not in the cache"; exit 1; }
    done
    plain
    sleep 1
}

if [ "$look" != - ]; then
    plain
    start
    at=$(block_of "$look")
    if [ "$look" = 3f ]; then
        found=$(get $((at + 5)))
        echo "3f: D's block reads $found, on the disk $(on_disk $((at + 5))):" \
            "$([[ $found = dd || $found = bb ]] && echo KEPT || echo LOST)"
    else
        reads=$(for block in $(seq "$at" $((at + 7))); do get "$block"; done | xargs)
        disk=$(for block in $(seq "$at" $((at + 7))); do on_disk "$block"; done | xargs)
        echo "$look: reads $reads, on the disk $disk: $([ "$reads" = "$disk" ] && echo AGREE || echo DISAGREE)"
    fi
    stop
    wait_until dmsetup remove backing # or make-bcache finds the disk in use
fi

[ "$cut" != - ] || exit 0
bcache_format /dev/vda /dev/vdb
plain
at=$(block_of "$cut")
case $cut in
3a) # the disk is slow: the journal may hold the removal before the data lands
    cached "$at"
    delayed backing /dev/vda 2000
    put "$at" 8 bb cut
    ;;
3b) # the data has landed, and the cache device is slow
    cache=/dev/mapper/cache
    delayed cache /dev/vdb 0
    cached "$at"
    delayed backing /dev/vda 5000
    delayed cache /dev/vdb 1000
    put "$at" 8 bb fua >/tmp/w &
    until [ "$(on_disk "$at" 8)" = bb ]; do sleep 0.1; done
    sleep 1
    echo "3b: W answered: $([ -s /tmp/w ] && cat /tmp/w || echo no)"
    power_cut
    ;;
3c) # nothing is slow
    cached "$at"
    put "$at" 8 bb cut
    ;;
3d)
    cached "$at"
    journal_delay 10000
    put "$at" 8 bb cut
    ;;
3e)
    cached "$at"
    put "$at" 8 bb flush cut
    ;;
3f)
    start
    mode writeback
    cutoff 65536
    put "$at" 16 aa >/dev/null
    put $((at + 5)) 1 dd >/dev/null
    flush >/dev/null
    sleep 1
    delayed backing /dev/vda 60000
    put "$at" 16 bb >/tmp/w &
    sleep 3
    echo "3f: W answered: $([ -s /tmp/w ] && cat /tmp/w || echo no); D's block on the disk: $(on_disk $((at + 5)))"
    power_cut
    ;;
esac
echo "$cut: no power cut"
exit 1
