# Several levels of the tree, a journal that has gone round, garbage collected: buckets of 4 and 16 KiB,
# extents of one sector, both ways, with a clean stop and with kill -9.
cache_mib_wanted=64 # small, so that the journal goes round; room enough that the driver need not evict
sets=(writeback-deep-4k writeback-deep-16k writeback-deep-linux-4k writethrough-deep-4k)
set_make ubcache "${sets[0]}" writeback 1 4k 512
set_make ubcache "${sets[1]}" writeback 1 16k 512
set_make make-bcache "${sets[2]}" writeback 1 4k 512
set_make make-bcache "${sets[3]}" writethrough 1 4k 512

many_sectors() { # ROUND COUNT
    "$pattern" random "$1" "$2" 1 0 65000 "$1"
}
one_turn() { # NAME ROUND COUNT: ubcache writes sector after sector, collects garbage, is killed or stopped
    local name=$1 round=$2 count=$3 end=$4
    ubcache_start "$name" || return
    each_volume "$name" verify_volume || return
    many_sectors "$round" "$count" >"$work/$name/operations0"
    { cat "$work/$name/content0" "$work/$name/operations0"; } | "$pattern" model >"$work/$name/after0"
    each_volume "$name" write_volume || return
    set_written "$name"
    "$ubcache" gc --control "$work/$name/control" || return
    many_sectors $((round + 1)) $((count / 4)) >"$work/$name/operations0"
    { cat "$work/$name/content0" "$work/$name/operations0"; } | "$pattern" model >"$work/$name/after0"
    each_volume "$name" write_volume || return
    set_written "$name"
    each_volume "$name" verify_volume || return
    if [ "$end" = kill ]; then
        each_volume "$name" flush_volume || return
        ubcache_kill "$name"
    else
        ubcache_stop "$name"
    fi
}

one_turn "${sets[0]}" 1 12000 stop
one_turn "${sets[1]}" 1 16000 kill
linux_station 11 1500 "${sets[@]}"
one_turn "${sets[0]}" 101 6000 kill
one_turn "${sets[1]}" 101 6000 stop
one_turn "${sets[2]}" 101 6000 stop
one_turn "${sets[3]}" 101 6000 kill
linux_station 31 300 "${sets[@]}"
for name in "${sets[@]}"; do
    say "$name: levels above the leaves and nodes: $(grep -E 'tree_depth|btree_nodes' "$work/$name/dirty-tree" | sed 's/.*://' | xargs)"
done
say "journal: $(grep -aho 'replay done.*' "$work"/console-* | sed 's/replay done, //' | tr -d '\r' | xargs -d '\n' | sed 's/ \([0-9]* keys\)/; \1/g')"
