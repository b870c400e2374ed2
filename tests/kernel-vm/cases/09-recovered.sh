# Dirty data of either side brought back by `ubcache recover`: Linux sees the set as clean, or the volume
# without a cache, and everything is there (9).
sets=(writeback-recovered-64k writeback-recovered-512k writeback-given-up)
set_make ubcache "${sets[0]}" writeback 2 64k 512
set_make make-bcache "${sets[1]}" writeback 1 512k 4096
set_make ubcache "${sets[2]}" writeback 1 64k 512

# recover_set NAME STATE [OPTION]...: brings everything back; Linux's word for the state is STATE.
recover_set() {
    local name=$1 state=$2 backing
    shift 2
    for backing in "$work/$name"/backing?.img; do
        "$ubcache" recover -C "$work/$name/cache.img" -B "$backing" "$@" >>"$work/$name/recover.log" || return
    done
    "$ubcache" check "$work/$name/cache.img" >>"$work/$name/recover.log" || return
    for backing in "$work/$name"/backing?.img; do
        bcache-super-show "$backing" | grep -qE "^dev\.data\.cache_state[[:space:]]+$state " || {
            note "$name: after recover: $(bcache-super-show "$backing" | grep cache_state), expected $state"
            return 1
        }
    done
}
# nothing_dirty NAME: Linux found no dirty data when it began.
nothing_dirty() {
    [ "$(sort -u "$work/$1/dirty-before" | xargs)" = 0.0k ] || {
        note "$1: Linux finds dirty data after recover: $(xargs <"$work/$1/dirty-before")"
        return 1
    }
}

for name in "${sets[@]}"; do
    ubcache_station "$name" 1 400
    ! grep -qw 0 "$work/$name/dirty-after" || {
        note "$name: nothing dirty to recover"
        exit 1
    }
done
recover_set "${sets[0]}" 1
recover_set "${sets[1]}" 1
recover_set "${sets[2]}" 0 --detach
linux_station 11 400 "${sets[@]}"
for name in "${sets[@]}"; do
    nothing_dirty "$name"
done
# What Linux left dirty.
recover_set "${sets[0]}" 1
recover_set "${sets[1]}" 1
recover_set "${sets[2]}" 0 --detach
linux_station 21 0 "${sets[@]}"
for name in "${sets[@]}"; do
    nothing_dirty "$name"
    ubcache_station "$name" 31 100
done
