# Guest script: the Linux driver starts each set, writes a few blocks, each by itself, and stops. /share/writes has a line
# for each set: NAME WRITES.
set -euo pipefail
. /share/sets.sh

while read -r name cache backings; do
    set_start
    writes=$(awk -v name="$name" '$1 == name {print $2}' /share/writes)
    for number in $(seq 0 $((writes - 1))); do
        dd if=/dev/zero of="${devices[0]}" bs=4k seek=$((number * 8)) count=1 oflag=direct conv=fsync status=none
        sleep 0.3 # the driver gathers keys for 0.1 s before it writes an entry
    done
    set_stop
done </share/sets
