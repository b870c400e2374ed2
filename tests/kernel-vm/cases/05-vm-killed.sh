# The virtual machine dies under load; ubcache replays the driver's journal: everything flushed is there.
# Then Linux reads what ubcache has made of it.
for volumes in 1 2; do
    make_sets make-bcache "$volumes"
    for name in "${sets[@]}"; do
        . "$work/$name/parameters"
        echo "7 60000 $unit $((backing_mib * 2048 - 16)) 20 2" >"$work/$name/load"
    done
    linux_load 3 "${sets[@]:0:4}"
    linux_load 3 "${sets[@]:4}"
    for name in "${sets[@]}"; do
        check_loaded "$name"
        cat "$work/$name/dirty-load" >>"$work/loads"
        ubcache_station "$name" 11 100
    done
    linux_station 21 100 "${sets[@]}"
done
