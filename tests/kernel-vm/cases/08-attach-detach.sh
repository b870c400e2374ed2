# Attached by one side, seen by the other; detached by Linux, seen by ubcache.
sets=(writeback-by-linux writeback-by-ubcache writethrough-by-linux writethrough-by-ubcache)
for name in "${sets[@]}"; do
    set_make apart "$name" "${name%%-*}" 2 64k 512
done
for name in "${sets[1]}" "${sets[3]}"; do
    ubcache_station "$name" 1 300
done
linux_station 11 300 "${sets[@]}"
for name in "${sets[@]}"; do
    was=$(sort -u "$work/$name/dirty-attached" 2>/dev/null | xargs || true)
    case $name,$was in
    *-by-ubcache,attached | *-by-linux,) ;;
    *)
        note "$name: before Linux did anything it was '${was:-not attached}'"
        exit 1
        ;;
    esac
    # What Linux attached, ubcache takes as attached: dirty data of the old turn is there.
    ubcache_station "$name" 21 300
done
was_dirty "${sets[0]}"
was_dirty "${sets[1]}"

# Linux detaches, and writes to the backing devices alone. Nothing that the cache had may come back.
for name in "${sets[@]}"; do
    set_writes "$name" 31 300
done
share_sets "${sets[@]}"
boot detach.sh "${disks[@]}"
for name in "${sets[@]}"; do
    set_written "$name"
    for backing in "$work/$name"/backing?.img; do
        "$ubcache" show "$backing" | grep -qE '^dev\.data\.cache_state\s+0 ' || {
            note "$name: ubcache does not see that it is detached: $("$ubcache" show "$backing" | grep cache_state)"
            exit 1
        }
    done
    # A detach outlives a start: the volumes go past the cache until they are attached.
    ubcache_start "$name"
    each_volume "$name" verify_volume
    for volume in backing0.img backing1.img; do
        "$ubcache" attach "$volume" --control "$work/$name/control" >>"$work/$name/attach.log"
    done
    each_volume "$name" verify_volume
    ubcache_stop "$name"
    ubcache_station "$name" 41 300
done
linux_station 51 100 "${sets[@]}"
for name in "${sets[@]}"; do
    [ "$(sort -u "$work/$name/dirty-attached" | xargs)" = attached ]
done

# ubcache detaches, under its clients, and attaches again; and the same without attaching again.
for name in "${sets[@]}"; do
    ubcache_start "$name"
    each_volume "$name" verify_volume
    for volume in backing0.img backing1.img; do
        "$ubcache" detach "$volume" --control "$work/$name/control" >>"$work/$name/detach.log"
    done
    each_volume "$name" verify_volume
    set_writes "$name" 61 200
    each_volume "$name" write_volume
    set_written "$name"
    "$ubcache" attach backing1.img --control "$work/$name/control" >>"$work/$name/detach.log"
    each_volume "$name" verify_volume
    each_volume "$name" flush_volume
    ubcache_stop "$name"
    for index in 0 1; do
        state=$(bcache-super-show "$work/$name/backing$index.img" | sed -nE 's/^dev\.data\.cache_state[[:space:]]+([0-9]).*/\1/p')
        [ "$state" = "$index" ] || {
            note "$name: volume $index is in state $state after ubcache's detach, expected $index"
            exit 1
        }
    done
done
linux_station 71 200 "${sets[@]}"
for name in "${sets[@]}"; do
    ubcache_station "$name" 81 0
done
