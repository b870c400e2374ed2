# Guest script: the Linux driver's turn with one set after the other (see linux_station in host-lib.sh).
set -euo pipefail
. /share/sets.sh

while read -r name cache backings; do
    set_start
    for index in "${!devices[@]}"; do
        device=${devices[index]}
        cat "${attributes[index]}/dirty_data" >>"$dir/dirty-before"
        if [ -e "$dir/load" ]; then
            # A load was cut off: what was flushed has to be there; what is there is what counts now.
            reading check-load "$device" "${salt[index]}" "$dir/log$index" $(<"$dir/load") \
                <"$dir/content$index" >/tmp/verify || complain "$device after the load: $(</tmp/verify)"
            tail -n 1 /tmp/verify >>"$dir/dirty-load"
            reading identify "$device" "${salt[index]}" >"$dir/content$index"
        else
            verify "$device" "${salt[index]}" "$dir/content$index" before
        fi
        echo "$mode" >"${attributes[index]}/cache_mode"
        put_into_cache "$device" "$index"
        if [ -e "$dir/operations$index" ]; then
            "$pattern" write "$device" "${salt[index]}" <"$dir/operations$index"
            verify "$device" "${salt[index]}" "$dir/after$index" after
        fi
    done
    set_gc
    for index in "${!devices[@]}"; do
        cat "${attributes[index]}/dirty_data" >>"$dir/dirty-after"
    done
    grep -s . "$set_directory"/{tree_depth,internal/btree_nodes} >"$dir/dirty-tree" || true
    set_stop
done </share/sets
exit "$wrong"
