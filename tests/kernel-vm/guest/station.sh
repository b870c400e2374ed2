# Guest script: the Linux driver's turn with one set after the other (see linux_station in host-lib.sh).
set -euo pipefail
. /lib/guest-lib.sh
. /share/options
pattern=/share/pattern
wrong=0

verify() { # verify DEVICE SALT CONTENT WHEN
    "$pattern" verify "$1" "$2" <"$3" >/tmp/verify && return
    echo "Linux: $name, $1 $4:"
    head -n 5 /tmp/verify
    wrong=1
}
# The bcache device over a backing device.
device_over() {
    basename "$(readlink -f "/sys/block/${1#/dev/}/bcache/dev")"
}

while read -r name cache backings; do
    dir=/share/$name
    salt=()
    . "$dir/parameters"
    bcache_register $backings "$cache"
    set_uuid=$(bcache-super-show "$cache" | awk '$1 == "cset.uuid" {print $2}')
    set_directory=/sys/fs/bcache/$set_uuid
    wait_until test -d "$set_directory"
    echo 0 >"$set_directory/congested_read_threshold_us"
    echo 0 >"$set_directory/congested_write_threshold_us"
    index=0
    : >"$dir/dirty-before"
    : >"$dir/dirty-after"
    for backing in $backings; do
        attributes=/sys/block/${backing#/dev/}/bcache
        wait_until test -e "$attributes/dev"
        device=/dev/$(device_over "$backing")
        wait_until test -b "$device"
        [ -e "$attributes/cache" ] || echo "$set_uuid" >"$attributes/attach"
        echo 0 >"$attributes/writeback_running"
        echo 0 >"$attributes/sequential_cutoff"
        cat "$attributes/dirty_data" >>"$dir/dirty-before"
        verify "$device" "${salt[index]}" "$dir/content$index" "before"
        echo "$mode" >"$attributes/cache_mode"
        if [ -e "$dir/operations$index" ]; then
            "$pattern" write "$device" "${salt[index]}" <"$dir/operations$index"
            verify "$device" "${salt[index]}" "$dir/after$index" "after"
        fi
        index=$((index + 1))
    done
    echo 1 >"$set_directory/internal/trigger_gc"
    sleep 0.3
    for backing in $backings; do
        cat "/sys/block/${backing#/dev/}/bcache/dirty_data" >>"$dir/dirty-after"
        "$pattern" flush "/dev/$(device_over "$backing")"
    done
    [ "$end" = stop ] || continue
    bcache_stop
done </share/sets

[ "$end" != power-cut ] || [ "$wrong" != 0 ] || power_cut
exit "$wrong"
