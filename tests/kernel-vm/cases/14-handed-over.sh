# What ubcache hands over and takes over: a clean cache that stays warm, backing devices that become shorter and longer between the
# turns of ubcache and the driver, dirty data that a discard dropped.
# turn SET...: the driver reads everything, and something of it from the cache.
turn() {
    rm -f "$work"/*/{operations,after}*
    options="hits=1" share_sets "$@"
    boot turn.sh "${disks[@]}"
}
resized() { truncate -s "$2M" "$work/$1/backing0.img"; }
# lost_from NAME SECTOR: from there on the volume has zeroes
lost_from() {
    awk -v end="$2" '$1 < end {if ($1 + $2 > end) $2 = end - $1; print $1, $2, $3}' "$work/$1/content0" >"$work/$1/content-cut"
    mv "$work/$1/content-cut" "$work/$1/content0"
}
# shortened NAME: ubcache finds the disk 8 MiB shorter, and serves what is left. Then it is as long as it was, with nothing there.
shortened() {
    resized "$1" $((backing_mib - 8))
    lost_from "$1" $(((backing_mib - 8) * 2048 - 16)) # the data begins 8 KiB in
    ubcache_station "$1" 0 0
    resized "$1" "$backing_mib"
}

sets=(writethrough-warm writethrough-shorter writeback-shorter writeback-discarded)
for name in "${sets[@]}"; do
    cache_mib_wanted=64 set_make ubcache "$name" "${name%-*}" 1 64k 512
    ubcache_station "$name" 1 200 >/dev/null
done
shortened writethrough-shorter

# Dirty data beyond the end: refused, until the disk is as long as it was.
resized writeback-shorter $((backing_mib - 8))
: >"$work/writeback-shorter/serve.log"
if ubcache_start writeback-shorter 2>/dev/null; then
    note "a disk that is too short for dirty data was taken"
    exit 1
fi
rm "$work/writeback-shorter/daemon"
grep -qF 'the disk is shorter than it was, and the cache has dirty data beyond its end' "$work/writeback-shorter/serve.log"
resized writeback-shorter "$backing_mib"

# A discard of dirty data: there is less of it, and the driver finds a hole.
ubcache_start writeback-discarded
before=$(dirty_bytes writeback-discarded)
echo 16384 1024 0 >"$work/discards"
seq 20480 2048 40000 | sed 's/$/ 1024 0/' >>"$work/discards"
"$pattern" trim "nbd:$work/writeback-discarded/nbd:backing0.img" <"$work/discards"
cat "$work/discards" >>"$work/writeback-discarded/content0"
"$pattern" model <"$work/writeback-discarded/content0" >"$work/content"
mv "$work/content" "$work/writeback-discarded/content0"
each_volume writeback-discarded verify_volume
after=$(dirty_bytes writeback-discarded)
ubcache_stop writeback-discarded >/dev/null
say "dirty data before the discards $before bytes, after them $after"
[ "$after" -lt "$before" ]

turn "${sets[@]}"

# What the driver left, with the disk shorter.
shortened writethrough-shorter
for name in writeback-shorter writeback-discarded; do
    ubcache_station "$name" 11 100 >/dev/null
done
# Recovered, a cache is clean and stays warm.
"$ubcache" recover -C "$work/writeback-discarded/cache.img" -B "$work/writeback-discarded/backing0.img" >"$work/recover.log"
: >"$work/writeback-discarded/serve.log"
ubcache_station writeback-discarded 0 0 >/dev/null
lacks 'was dropped' "$work/writeback-discarded/serve.log"
turn writethrough-shorter writeback-shorter writeback-discarded
