# Made by make-bcache, run first in ubcache, then in Linux, in ubcache again, and read by Linux (2 and 3).
for volumes in 1 2; do
    make_sets make-bcache "$volumes"
    for name in "${sets[@]}"; do
        ubcache_station "$name" 1 400
    done
    linux_station 11 400 "${sets[@]}"
    for name in "${sets[@]}"; do
        was_dirty "$name"
        ubcache_station "$name" 21 400
        was_dirty "$name"
    done
    linux_station 31 0 "${sets[@]}"
done
