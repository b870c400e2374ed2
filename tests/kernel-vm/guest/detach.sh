# Guest script: detaches everything, then writes without the cache.
set -euo pipefail
. /share/sets.sh

detached() {
    [ ! -e "$1/cache" ] && [ "$(cat "$1/state")" = "no cache" ]
}
while read -r name cache backings; do
    set_start
    for index in "${!devices[@]}"; do
        verify "${devices[index]}" "${salt[index]}" "$dir/content$index" "before the detach"
        echo 1 >"${attributes[index]}/writeback_running"
        echo 0 >"${attributes[index]}/writeback_percent"
        echo 1 >"${attributes[index]}/detach"
    done
    for index in "${!devices[@]}"; do
        wait_until detached "${attributes[index]}"
        verify "${devices[index]}" "${salt[index]}" "$dir/content$index" "after the detach"
        "$pattern" write "${devices[index]}" "${salt[index]}" <"$dir/operations$index"
        verify "${devices[index]}" "${salt[index]}" "$dir/after$index" "detached"
    done
    set_stop
done </share/sets
exit "$wrong"
