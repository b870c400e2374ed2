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
sleep "$seconds"
[ "$(jobs -r | wc -l)" -gt 0 ] || { echo "the load ended too early"; exit 1; }
power_cut
