# The driver's journal entries carry the padding of entries that it has read, ubcache's mark with it, into every other one of its
# own. However many it writes, ubcache sees that it was not the last to run the set.
newest_header() {
    "$ubcache" dump "$work/$1/cache.img" --what journal | grep '^journal header ' | tail -n 1
}
newest_entry() {
    newest_header "$1" | sed 's/^journal header \([0-9]*\):.*/\1/'
}
# carried NAME: whether the newest entry has the name of ubcache without being its own.
carried() {
    local name
    name=$(printf ubcache1 | od -An -v -tx1 | tr -d ' \n')
    case $(newest_header "$1") in
    *", mark $name"*) echo 1 ;;
    *) echo 0 ;;
    esac
}

fill_ring() { # a flush after each write: its journal goes round, so that whatever the driver reads of it has the mark
    "$pattern" load "$4" "$3" "$1/log$2" 7 900 8 60000 1 1
}

sets=()
for writes in 0 1 2 3 4 5; do
    name=writeback-writes-$writes
    sets+=("$name")
    cache_mib_wanted=40 set_make ubcache "$name" writeback 1 64k 512
    ubcache_start "$name"
    each_volume "$name" fill_ring
    ubcache_stop "$name"
    # ubcache after ubcache is no take-over.
    ubcache_start "$name"
    ubcache_stop "$name"
    lacks 'ran this set last' "$work/$name/serve.log"
done
share_sets "${sets[@]}"
for name in "${sets[@]}"; do
    newest_entry "$name" >"$work/$name/newest-before"
    echo "$name ${name##*-}" >>"$work/share/writes"
done
boot few-writes.sh "${disks[@]}"
parities=
for name in "${sets[@]}"; do
    before=$(<"$work/$name/newest-before") after=$(newest_entry "$name") carried=$(carried "$name")
    ubcache_start "$name"
    ubcache_stop "$name"
    taken_over=$(grep -c 'the Linux driver ran this set last' "$work/$name/serve.log" || true)
    say "${name##*-} writes: $((after - before)) entries of the driver, ubcache's name in the newest $carried; taken over $taken_over times"
    [ "$after" = "$before" ] || [ "$taken_over" = 1 ]
    [ "$after" = "$before" ] || parities+=" $(((after - before) % 2))/$carried"
    # Once: now it is ubcache's.
    ubcache_start "$name"
    ubcache_stop "$name"
    [ "$(grep -c 'ran this set last' "$work/$name/serve.log" || true)" = "$taken_over" ]
done
# Even and odd numbers of entries were among them, and the name was in one of them.
[[ $parities = *" 0/"* && $parities = *" 1/"* && $parities = */1* ]]
