# Guest script: the Linux driver's turn with each set: what is there is verified, operationsN, if any, are done and verified. The
# mode is changed if it is another one, and nothing else that the driver would keep. With cut=1 in /share/options the sets are
# left running, and the power fails after a flush; with hits=1 something has to be read from the cache.
set -euo pipefail
. /share/sets.sh

has_hits() { [ "$(cat "$1/stats_total/cache_hits")" -gt 0 ]; } # brought up to date every few seconds
while read -r name cache backings; do
    set_start
    for index in "${!devices[@]}"; do
        verify "${devices[index]}" "${salt[index]}" "$dir/content$index" before
        [ "${hits:-0}" = 0 ] || wait_until has_hits "${attributes[index]}"
        grep -q "\[$mode\]" "${attributes[index]}/cache_mode" || echo "$mode" >"${attributes[index]}/cache_mode"
        [ -e "$dir/operations$index" ] || continue
        "$pattern" write "${devices[index]}" "${salt[index]}" <"$dir/operations$index"
        verify "${devices[index]}" "${salt[index]}" "$dir/after$index" after
        "$pattern" flush "${devices[index]}"
    done
    [ "${cut:-0}" = 1 ] || set_stop
done </share/sets
[ "${cut:-0}" = 0 ] || [ "$wrong" = 1 ] || power_cut
exit "$wrong"
