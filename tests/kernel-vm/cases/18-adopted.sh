# A disk that was adopted as it is: its header and the disk are a backing device for the driver, by a dm-linear
# table. Dirty data of either side is taken over by the other, and is on the disk when that is released.
export UBCACHE_HEADERS=$work/headers
name=writeback-adopted
set_make adopted "$name" writeback 1 64k 4096
ubcache_station "$name" 1 400
linux_station 11 400 "$name"
was_dirty "$name"
ubcache_station "$name" 21 400
was_dirty "$name"
linux_station 31 100 "$name"
was_dirty "$name"
# The driver takes no witness: a start of ubcache knows that it was the driver, the offline tools do not.
ubcache_station "$name" 41 0
"$ubcache" release "$work/$name/backing0.img" -C "$work/$name/cache.img" >>"$work/$name/release.log"
(
    . "$work/$name/parameters"
    "$pattern" verify "$work/$name/backing0.img" "$(volume_salt 0)" <"$work/$name/content0"
)
[ -z "$(ls "$UBCACHE_HEADERS")" ]
