# Made by `ubcache make`, run first in Linux, then in ubcache, then in Linux again (1 and 3 of issue 4).
for volumes in 1 2; do
    make_sets ubcache "$volumes"
    linux_station 1 400 "${sets[@]}"
    for name in "${sets[@]}"; do
        ubcache_station "$name" 11 400
        was_dirty "$name"
    done
    linux_station 21 300 "${sets[@]}"
    for name in "${sets[@]}"; do
        was_dirty "$name"
    done
done
