# Guest script: loads on all sets at once, and then the power fails.
set -euo pipefail
. /share/sets.sh

while read -r name cache backings; do
    set_start
    for index in "${!devices[@]}"; do
        echo "$mode" >"${attributes[index]}/cache_mode"
        "$pattern" load "${devices[index]}" "${salt[index]}" "$dir/log$index" $(<"$dir/load") &
    done
done </share/sets
# Each load has to get somewhere, however slow the machine is.
all_flushed() {
    local log
    for log in /share/*/log*; do
        [ "$(wc -l <"$log")" -ge 3 ] || return
    done
}
for _ in $(seq 10); do
    ! wait_until all_flushed 2>/dev/null || break
done
sleep "$seconds"
[ "$(jobs -r | wc -l)" -gt 0 ] || { echo "the load ended too early"; exit 1; }
power_cut
