# Guest script: the experiments of docs/internals/coherence.md §12 that end in one boot; see story-lib.sh.
#   story-live.sh WHO delay|mirror|discard ROUNDS SLOW
# What is slow takes SLOW milliseconds, or twice as long and so on where the guest is too slow for that. delay: the backing disk
# has a write when it answers it; mirror: a write can be read there before it is answered; discard: a large discard.
set -euo pipefail
who=$1 part=$2 rounds=$3 slow=$4
. /share/story-lib.sh

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
    for try in 1 2 3 4 5; do
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

# A reader that does not stop, on a block that was cached clean when the write began.
experiment_4a() { # experiment_4a BLOCK DEVICE DISK: DEVICE is the slow one, over DISK
    local block=$1 seen after
    put "$block" 1 aa >/dev/null
    get "$block" >/dev/null
    sleep 1
    rm -f /tmp/enough
    delayed "$2" "$3" "$slow"
    /share/blocks watch "$device" "$block" /tmp/enough >/tmp/seen & watcher=$!
    sleep 1
    put "$block" 1 bb >/dev/null
    sleep 1
    touch /tmp/enough
    wait "$watcher"
    delayed "$2" "$3" 0
    seen=$(cat /tmp/seen) after=$(get "$block")
    echo "4a-$part: read $seen, then $after, on the disk $(on_disk "$block"):" \
        "$(case $seen in *"bb aa"*) echo BACK ;; *) [ "$after" = bb ] && echo FRESH || echo STALE ;; esac)"
}

# new, old, new: a miss has read A before W, and comes back when others have seen W. A is the last of 16 blocks. A suspended
# device holds what is sent to it: "far" the read of the block behind A, "leg" the answer to W.
experiment_4b() {
    local block=$(($1 + 15)) end=$((($1 + 16 + data) * 8)) past again after
    delayed leg /dev/vdc 0
    table far "0 $sectors linear /dev/vda 0"
    table backing "0 $end mirror core 2 1024 nosync 2 /dev/vda 0 /dev/mapper/leg 0
$end $((sectors - end)) linear /dev/mapper/far $end"
    put "$1" 32 aa >/dev/null
    dmsetup suspend far
    get "$block" 2 >/tmp/miss & reader=$!
    sleep $((slow / 1000))
    dmsetup suspend leg
    put "$block" 1 bb >/tmp/w & writer=$!
    wait_until has_landed "$block"
    past=$(get "$1" 16)
    dmsetup resume far
    wait "$reader"
    again=$(get "$block")
    [ ! -s /tmp/w ] || { echo "4b: W is answered"; exit 1; }
    dmsetup resume leg
    wait "$writer"
    [ "$(cat /tmp/miss)" = aa ] || return 1 # it came too late to read what was there before
    after=$(get "$block")
    past=${past##* }
    echo "4b: past the cache $past, then $again, after W's answer $after:" \
        "$(case "$past $again $after" in "bb bb bb") echo FORWARD ;; *) echo BACK ;; esac)"
}
has_landed() { [ "$(on_disk "$1")" = bb ]; }

# D is dirty and flushed when W begins; it is read while W is under way.
experiment_5c() {
    local block=$1 during after
    put "$block" 16 aa >/dev/null
    put $((block + 5)) 1 dd >/dev/null
    flush >/dev/null
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
    flush >/dev/null
    during=$(get $((block + 5)))
    in_time || { delayed leg /dev/vdc 0; return 1; }
    delayed leg /dev/vdc 0
    sleep 1
    after=$(get $((block + 5)))
    echo "5a: W on the disk $seen; D read $during, after W's answer $after:" \
        "$([ "$during $after" = "dd dd" ] && echo KEPT || echo LOST)"
}

# D comes while W is under way, which lands when it is answered: either may be the later one.
experiment_5b() {
    local block=$1 during after
    put "$block" 16 aa >/dev/null
    delayed backing /dev/vda "$slow"
    put "$block" 16 bb >/tmp/w & writer=$!
    sleep 1
    put $((block + 5)) 1 dd >/dev/null
    during=$(get $((block + 5)))
    in_time || { plain; return 1; }
    plain
    sleep 1
    after=$(get $((block + 5)))
    echo "5b: D read $during, after W's answer $after:" \
        "$([ "$during" = dd ] && [[ $after = dd || $after = bb ]] && echo RIGHT || echo LOST)"
}

# forgiven: a flush of the backing disk may have failed with the writes. Who flushes next is told so, once.
forgiven() {
    plain
    flush >/dev/null
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
    forgiven
    echo "6a: W $answer, then read $after, on the disk $(on_disk "$block"):" \
        "$([ "$after" = "$(on_disk "$block")" ] && echo AGREE || echo DISAGREE)"
}

# Half of a failing write lands; a block of each half is cached clean.
experiment_6b() {
    local block=$1 half=$((($1 + data + 8) * 8)) answer after disk
    put "$block" 16 aa >/dev/null
    get $((block + 2)) >/dev/null
    get $((block + 12)) >/dev/null
    sleep 1
    table flaky "0 $sectors flakey /dev/vda 0 0 3600 1 error_writes"
    table backing "0 $half linear /dev/vda 0
$half $((sectors - half)) linear /dev/mapper/flaky $half"
    answer=$(put "$block" 16 bb)
    after="$(get $((block + 2))) $(get $((block + 12)))"
    forgiven
    disk="$(on_disk $((block + 2))) $(on_disk $((block + 12)))"
    echo "6b: W $answer, then read $after, on the disk $disk: $([ "$after" = "$disk" ] && echo AGREE || echo DISAGREE)"
}

# A failing write over D, which is dirty and flushed.
experiment_6c() {
    local block=$1 answer after
    put "$block" 16 aa >/dev/null
    put $((block + 5)) 1 dd >/dev/null
    flush >/dev/null
    failing 0
    answer=$(put "$block" 16 bb)
    after=$(get $((block + 5)))
    forgiven
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
    in_time || { forgiven; return 1; }
    sleep 1
    after=$(get $((block + 5)))
    forgiven
    echo "6d: D read $during; W $(cat /tmp/w), then read $after:" \
        "$([ "$during $after" = "dd dd" ] && echo KEPT || echo LOST)"
}

case $part in
delay)
    bcache_format /dev/vda /dev/vdb
    plain
    start
    for round in $(seq "$rounds"); do
        at=$((1024 + round * 512))
        mode writearound
        cutoff 0
        tried experiment_1 $at 1 1
        tried experiment_4a $((at + 32)) backing /dev/vda
        mode writethrough
        cutoff 65536
        tried experiment_1 $((at + 64)) 1-sequential 16
        tried experiment_6a $((at + 96))
        tried experiment_6b $((at + 128))
        mode writeback
        tried experiment_5c $((at + 160))
        tried experiment_5b $((at + 192))
        tried experiment_6c $((at + 224))
        tried experiment_6d $((at + 256))
    done
    # 1 in the form in which it was reported in 2021: nothing is slow.
    mode writearound
    cutoff 0
    for round in $(seq "$rounds"); do
        old=$(/share/blocks race "$device" 8192 500)
        echo "2: $old: $([[ $old = "old after 0 "* ]] && echo FRESH || echo STALE)"
    done
    stop
    ;;
mirror)
    bcache_format /dev/vda /dev/vdb
    delayed leg /dev/vdc 0
    mirror="0 $sectors mirror core 2 1024 nosync 2 /dev/vda 0 /dev/mapper/leg 0"
    table backing "$mirror"
    start
    mode writearound
    cutoff 65536
    for round in $(seq "$rounds"); do
        table backing "$mirror"
        tried experiment_4a $((512 + round * 256)) leg /dev/vdc
        tried experiment_4b $((640 + round * 256))
    done
    table backing "$mirror"
    delayed leg /dev/vdc 0
    mode writeback
    put 512 1 dd >/dev/null # the first dirty block changes the superblock of the slow disk, which is not the subject
    for round in $(seq "$rounds"); do
        tried experiment_5a $((8192 + round * 256))
    done
    stop
    ;;
discard)
    # An invalidation of many keys: 240 MiB, of which a block in 16 MiB is cached. The kernel's log is looked at by the case.
    bcache_format /dev/vda /dev/vdb
    plain
    serve_options=--trust-discards
    start
    mode writethrough
    blocks=$(seq 1024 4096 60000)
    for block in $blocks; do put "$block" 1 aa >/dev/null; done
    for block in $blocks; do get "$block" >/dev/null; done
    blkdiscard -l $((240 << 20)) "$device"
    reads=$(for block in $blocks; do get "$block"; done | sort -u | xargs)
    disk=$(for block in $blocks; do on_disk "$block"; done | sort -u | xargs)
    echo "7: after the discard read $reads, on the disk $disk: $([ "$reads" = "$disk" ] && echo AGREE || echo DISAGREE)"
    stop
    ;;
esac
