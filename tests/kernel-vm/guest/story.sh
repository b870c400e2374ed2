# Guest script: the experiments of docs/coherence.md §12, on the driver and, with the same steps, on ubcache served to the
# kernel's nbd client.
#   story.sh WHO live|mirror ROUNDS SLOW one boot; WHO is bcache or ubcache; a slow write takes SLOW milliseconds, or twice
#                                        as long and so on where the guest is too slow for that
#   story.sh WHO power PART              PART is 3d or 3f: ends in a power cut
#   story.sh WHO look PART               the next boot, on the same disks
# /dev/vda is the backing disk, /dev/vdb the cache, /dev/vdc the other leg of a mirror. Blocks have 4 KiB. A byte fills each
# write: aa is what was there, bb a write W past the cache, dd a write D to the cache. Lines of results begin with the
# experiment; the last word is the verdict.
set -euo pipefail
. /lib/guest-lib.sh
who=$1 part=$2
sectors=$(blockdev --getsz /dev/vda)
data=2 # the first block of the volume on the backing disk

modprobe -a dm-mod dm-delay dm-flakey dm-mirror

# table NAME LINES: makes the device, or gives it another table.
table() {
    if [ -e "/dev/mapper/$1" ]; then
        printf '%s\n' "$2" | dmsetup reload "$1"
        dmsetup resume "$1"
    else
        printf '%s\n' "$2" | dmsetup create "$1"
    fi
}
delayed() { # delayed NAME DEVICE MILLISECONDS: its writes take so long; reads and flushes do not
    table "$1" "0 $sectors delay $2 0 0 $2 0 $3 $2 0 0"
}
plain() { table backing "0 $sectors linear /dev/vda 0"; }

for byte in aa bb dd; do
    head -c 65536 /dev/zero | tr '\0' "\\$(printf %o "0x$byte")" >"/tmp/$byte"
done
put() { # put BLOCK COUNT BYTE: one write; says ok or EIO
    if dd if="/tmp/$3" of="$device" bs="$(($2 * 4096))" count=1 seek="$(($1 / $2))" oflag=direct conv=notrunc status=none 2>/dev/null; then
        echo ok
    else
        echo EIO
    fi
}
bytes_of() { # bytes_of DEVICE BLOCK: each different byte of the block once
    dd if="$1" bs=4k skip="$2" count=1 iflag=direct status=none 2>/dev/null | od -An -v -tx1 | tr -s ' ' '\n' | sort -u | xargs
}
get() { bytes_of "$device" "$1"; }
on_disk() { bytes_of /dev/vda $(($1 + data)); }
flush() { /share/pattern flush "$device"; }

start_bcache() {
    bcache_register /dev/mapper/backing /dev/vdb
    bcache_settle bcache0
    device=/dev/bcache0
    echo 0 >/sys/block/bcache0/bcache/writeback_running
}
mode_bcache() { echo "$1" >/sys/block/bcache0/bcache/cache_mode; }
cutoff_bcache() { echo "$1" >/sys/block/bcache0/bcache/sequential_cutoff; }
journal_delay_bcache() { echo "$1" >"$(bcache_set)/journal_delay_ms"; }
stop_bcache() { bcache_stop; }
start_ubcache() {
    /share/ubcache serve -C /dev/vdb -B /dev/mapper/backing --nbd unix:/tmp/nbd --control /tmp/control \
        --set sequential_cutoff=0 --set writeback_running=0 \
        --set congested_read_threshold_us=0 --set congested_write_threshold_us=0 >/tmp/serve 2>/tmp/log &
    wait_until grep -q ^ready /tmp/serve || { cat /tmp/log; exit 1; }
    modprobe nbd
    nbd-client -unix /tmp/nbd -N "$(awk '$1 == "export" {print $2}' /tmp/serve)" /dev/nbd0 >/dev/null
    device=/dev/nbd0
}
set_ubcache() { /share/ubcache set "$1" --control /tmp/control >/dev/null; }
mode_ubcache() { set_ubcache "cache_mode=$1"; }
cutoff_ubcache() { set_ubcache "sequential_cutoff=$1"; }
journal_delay_ubcache() { set_ubcache "journal_delay_ms=$1"; }
stop_ubcache() {
    nbd-client -d /dev/nbd0 >/dev/null
    /share/ubcache stop --control /tmp/control >/dev/null
    wait
}
start() { "start_$who"; }
stop() { "stop_$who"; }
mode() { "mode_$who" "$1"; }
cutoff() { "cutoff_$who" "$1"; }

slow=${4:-5000}
# in_time: the write in the background has not ended, so that what was read meanwhile was read in time. Waits for its end.
in_time() {
    local status=0
    kill -0 "$writer" 2>/dev/null || status=1
    wait "$writer"
    return "$status"
}
# tried WORDS...: does an experiment; once more with slower writes if it was not in time.
tried() {
    local try
    for try in 1 2 3 4; do
        ! "$@" || return 0
        slow=$((slow * 2))
    done
    echo "$*: no read came before the end of the write"
    return 1
}

# The race as reported: a read that misses during a write past the cache.
experiment_1() { # experiment_1 BLOCK NAME COUNT
    local block=$1 during after
    put "$block" "$3" aa >/dev/null
    delayed backing /dev/vda "$slow"
    put "$block" "$3" bb >/tmp/w & writer=$!
    sleep 1
    during=$(get "$block")
    in_time || { plain; return 1; }
    plain
    sleep 1
    after=$(get "$block")
    echo "$2: during W $during, after it $after, on the disk $(on_disk "$block"):" \
        "$([ "$after" = bb ] && echo FRESH || echo STALE)"
}

# D is dirty and flushed when W begins; it is read while W is under way.
experiment_5c() {
    local block=$1 during after
    put "$block" 16 aa >/dev/null
    put $((block + 5)) 1 dd >/dev/null
    flush
    delayed backing /dev/vda "$slow"
    put "$block" 16 bb >/tmp/w & writer=$!
    sleep 1
    during=$(get $((block + 5)))
    in_time || [ "$who" = ubcache ] || { plain; return 1; }
    plain
    sleep 1
    after=$(get $((block + 5)))
    # Once W is answered only bb is right; before, dd is, and bb.
    echo "5c: while W is under way $during, after it $after:" \
        "$([ "$during" != aa ] && [ "$after" = bb ] && echo RIGHT || echo OLDER)"
}

# W lands at once and is answered late; D is written, flushed and read meanwhile.
experiment_5a() {
    local block=$1 seen during after
    put "$block" 16 aa >/dev/null
    delayed leg /dev/vdc "$slow"
    put "$block" 16 bb >/tmp/w & writer=$!
    sleep 1
    seen=$(on_disk "$block")
    put $((block + 5)) 1 dd >/dev/null
    flush
    during=$(get $((block + 5)))
    in_time || { delayed leg /dev/vdc 0; return 1; }
    delayed leg /dev/vdc 0
    sleep 1
    after=$(get $((block + 5)))
    echo "5a: W on the disk $seen; D read $during, after W's answer $after:" \
        "$([ "$during $after" = "dd dd" ] && echo KEPT || echo LOST)"
}

failing() { # failing MILLISECONDS: writes fail, after a while
    table flaky "0 $sectors flakey /dev/vda 0 0 3600 1 error_writes"
    delayed backing /dev/mapper/flaky "$1"
}

# A failing write over a clean copy: whatever the answer is, what is read is what the disk has.
experiment_6a() {
    local block=$1 answer after
    put "$block" 16 aa >/dev/null
    get "$block" >/dev/null
    sleep 1
    failing 0
    answer=$(put "$block" 16 bb)
    after=$(get "$block")
    plain
    echo "6a: W $answer, then read $after, on the disk $(on_disk "$block"):" \
        "$([ "$after" = "$(on_disk "$block")" ] && echo AGREE || echo DISAGREE)"
}

# A failing write over D, which is dirty and flushed.
experiment_6c() {
    local block=$1 answer after
    put "$block" 16 aa >/dev/null
    put $((block + 5)) 1 dd >/dev/null
    flush
    failing 0
    answer=$(put "$block" 16 bb)
    after=$(get $((block + 5)))
    plain
    # If W failed, D may be there or W; if not, W. Never what was there before D.
    echo "6c: W $answer, then read $after:" "$([ "$answer $after" = "ok bb" ] || [ "$answer $after" = "EIO dd" ] && echo RIGHT || echo LOST)"
}

# D comes, is answered and read while the write that will fail is under way.
experiment_6d() {
    local block=$1 during after
    put "$block" 16 aa >/dev/null
    failing "$slow"
    put "$block" 16 bb >/tmp/w & writer=$!
    sleep 1
    put $((block + 5)) 1 dd >/dev/null
    during=$(get $((block + 5)))
    in_time || { plain; return 1; }
    sleep 1
    after=$(get $((block + 5)))
    plain
    echo "6d: D read $during; W $(cat /tmp/w), then read $after:" \
        "$([ "$during $after" = "dd dd" ] && echo KEPT || echo LOST)"
}

case $part in
live)
    bcache_format /dev/vda /dev/vdb
    plain
    start
    for round in $(seq "$3"); do
        block=$((1024 + round * 256))
        mode writearound
        cutoff 0
        tried experiment_1 $block 1 1
        mode writethrough
        cutoff 65536
        tried experiment_1 $((block + 32)) 1-sequential 16
        tried experiment_6a $((block + 64))
        mode writeback
        for number in 5c 6c 6d; do
            cutoff 65536
            block=$((block + 32))
            tried "experiment_$number" $((block + 64))
        done
    done
    stop
    ;;
mirror)
    bcache_format /dev/vda /dev/vdb
    delayed leg /dev/vdc 0
    table backing "0 $sectors mirror core 2 1024 nosync 2 /dev/vda 0 /dev/mapper/leg 0"
    start
    mode writeback
    cutoff 65536
    put 512 1 dd >/dev/null # the first dirty block changes the superblock of the slow disk, which is not the subject
    for round in $(seq "$3"); do
        tried experiment_5a $((1024 + round * 256))
    done
    stop
    ;;
power)
    bcache_format /dev/vda /dev/vdb
    plain
    start
    if [ "$3" = 3f ]; then
        mode writeback
        cutoff 65536
        put 1024 16 aa >/dev/null
        put 1029 1 dd >/dev/null
        flush
        sleep 1
        delayed backing /dev/vda 60000
        put 1024 16 bb >/tmp/w &
        sleep 3
        echo "3f: W answered: $([ -s /tmp/w ] && cat /tmp/w || echo no); D's block on the disk: $(on_disk 1029)"
        power_cut
    fi
    mode writearound
    put 1024 8 aa >/dev/null
    for block in $(seq 1024 1031); do get "$block" >/dev/null; done
    # What reads put into the cache is in its index for good after a stop.
    stop
    start
    mode writearound
    "journal_delay_$who" 10000
    answer=$(put 1024 8 bb)
    echo power-cut >/dev/status
    echo "$3: W answered: $answer"
    power_cut
    ;;
look)
    plain
    start
    if [ "$3" = 3f ]; then
        found=$(get 1029)
        echo "3f: D's block reads $found, on the disk $(on_disk 1029):" "$([[ $found = dd || $found = bb ]] && echo KEPT || echo LOST)"
    else
        agree=0 cached='' disk=''
        for block in $(seq 1024 1031); do
            cached+=" $(get "$block")" disk+=" $(on_disk "$block")"
        done
        echo "$3: reads$cached, on the disk$disk:" "$([ "$cached" = "$disk" ] && echo AGREE || echo DISAGREE)"
    fi
    stop
    ;;
esac
