# Guest script: flash-only volumes.   make: creates and fills one in each set; check: reads it.
set -euo pipefail
. /share/sets.sh
flash_salt=0xf1a5f1a5f1a50000

# find_flash: leaves the other device in $flash.
find_flash() {
    for flash in /dev/bcache*; do
        [ "$flash" = "${devices[0]}" ] || [ ! -b "$flash" ] || return 0
    done
    return 1
}

while read -r name cache backings; do
    set_start
    [ "$1" = check ] || echo 16M >"$set_directory/flash_vol_create"
    wait_until find_flash
    { "$pattern" random 5 3000 8 0 32768 1 && "$pattern" random 6 500 "$unit" 0 32768 2; } >/tmp/operations
    if [ "$1" = make ]; then
        "$pattern" write "$flash" "$flash_salt" </tmp/operations
        "$pattern" flush "$flash"
    else
        verify "${devices[0]}" "${salt[0]}" "$dir/content0" "beside a flash-only volume"
    fi
    "$pattern" model </tmp/operations >/tmp/model
    verify "$flash" "$flash_salt" /tmp/model "flash-only"
    set_gc
    set_stop
done </share/sets
exit "$wrong"
