# ubcache dies of kill -9 under load; Linux replays its journal: everything flushed is there. Then the
# other way once more: ubcache reads what Linux has made of it.
for volumes in 1 2; do
    make_sets ubcache "$volumes"
    for name in "${sets[@]}"; do
        ubcache_station "$name" 1 200
        . "$work/$name/parameters"
        echo "7 60000 $unit $((backing_mib * 2048 - 16)) 20 4" >"$work/$name/load"
        ubcache_load 1.5 "$name"
    done
    linux_station 11 0 "${sets[@]}"
    cat "$work"/*-"$volumes"-*/dirty-load >>"$work/loads"
    for name in "${sets[@]}"; do
        ubcache_station "$name" 21 100
    done
done
