# Flash-only volumes made by Linux live through ubcache, which does not serve them: a cache so full that
# buckets are evicted, garbage collection, kill -9.
cache_mib_wanted=48
sets=(writethrough-flash writeback-flash)
set_make make-bcache "${sets[0]}" writethrough 1 64k 512
set_make make-bcache "${sets[1]}" writeback 1 64k 4096

flash() { # flash WHAT: one boot of guest/flash.sh
    local disks
    share_sets "${sets[@]}"
    arguments=$1 boot flash.sh "${disks[@]}"
}
fill() { # fill NAME ROUND COUNT: random writes and reads by ubcache, then a garbage collection
    local name=$1
    ubcache_start "$name" || return
    each_volume "$name" verify_volume || return
    "$pattern" random "$2" "$3" 8 0 65000 "$2" >"$work/$name/operations0"
    { cat "$work/$name/content0" "$work/$name/operations0"; } | "$pattern" model >"$work/$name/after0"
    each_volume "$name" write_volume || return
    set_written "$name"
    "$ubcache" gc --control "$work/$name/control" || return
    each_volume "$name" verify_volume || return
    each_volume "$name" flush_volume
}

flash make
fill "${sets[0]}" 1 20000
ubcache_stop "${sets[0]}"
fill "${sets[1]}" 1 1500
ubcache_kill "${sets[1]}"
flash check
fill "${sets[0]}" 2 10000
ubcache_kill "${sets[0]}"
fill "${sets[1]}" 2 1000
ubcache_stop "${sets[1]}"
flash check
