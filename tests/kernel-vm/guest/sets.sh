# Helpers of the guest scripts that work on sets; see linux_station in host-lib.sh for what is in /share.
. /lib/guest-lib.sh
. /share/options
pattern=/share/pattern
wrong=0

# complain WORDS...: the station goes on, and fails at its end.
complain() {
    echo "Linux: $name: $*"
    wrong=1
}

# join: of $backings, HEADER:DISK becomes the device that the two are together, by a dm-linear table.
join() {
    local backing joined=()
    for backing in $backings; do
        case $backing in
        *:*)
            modprobe dm-mod
            {
                echo "0 16 linear ${backing%:*} 0"
                echo "16 $(blockdev --getsz "${backing#*:}") linear ${backing#*:} 0"
            } | dmsetup create "joined${#joined[@]}"
            # Without udev, /dev/mapper has nodes of its own.
            backing=/dev/dm-$(dmsetup info -c --noheadings -o minor "joined${#joined[@]}")
            ;;
        esac
        joined+=("$backing")
    done
    backings=${joined[*]}
}

# set_start: registers the set $name with $cache and $backings, the cache first or last, attaches what
# is not attached, and holds writeback. Leaves its directory in $set_directory, the bcache devices in
# devices[] and what sysfs has of them in attributes[].
set_start() {
    local backing set_uuid
    dir=/share/$name
    salt=() devices=() attributes=()
    . "$dir/parameters"
    join
    if [ "${cache_first:-0}" = 1 ]; then
        bcache_register "$cache" $backings
    else
        bcache_register $backings "$cache"
    fi
    set_uuid=$(bcache-super-show "$cache" | awk '$1 == "cset.uuid" {print $2}')
    set_directory=/sys/fs/bcache/$set_uuid
    wait_until test -d "$set_directory"
    echo 0 >"$set_directory/congested_read_threshold_us"
    echo 0 >"$set_directory/congested_write_threshold_us"
    for backing in $backings; do
        attributes+=("/sys/block/${backing#/dev/}/bcache")
        wait_until test -e "${attributes[-1]}/dev"
        devices+=("/dev/$(basename "$(readlink -f "${attributes[-1]}/dev")")")
        wait_until test -b "${devices[-1]}"
        [ ! -e "${attributes[-1]}/cache" ] || echo attached >>"$dir/dirty-attached"
        [ -e "${attributes[-1]}/cache" ] || echo "$set_uuid" >"${attributes[-1]}/attach"
        echo 0 >"${attributes[-1]}/writeback_running"
        echo 0 >"${attributes[-1]}/sequential_cutoff"
    done
}

# set_gc: a garbage collection, and its end
set_gc() {
    echo >/sys/kernel/tracing/trace
    echo 1 >/sys/kernel/tracing/events/bcache/bcache_gc_end/enable
    echo 1 >"$set_directory/internal/trigger_gc"
    wait_until grep -q 'bcache_gc_end:' /sys/kernel/tracing/trace
}

# set_stop: stops everything. Says in $dir/races how often a bucket was taken from under a read (see README).
set_stop() {
    cat "$set_directory/internal/cache_read_races" >"$dir/races"
    bcache_stop
}

# reading COMMAND DEVICE WORDS...: `pattern COMMAND DEVICE WORDS...` with reads of 1 MiB. What is in the cache is read from
# there, but nothing is put there: when the driver does both in one request, it sometimes takes a bucket from
# under itself (see README).
reading() {
    local cutoff=/sys/block/${2#/dev/}/bcache/sequential_cutoff status=0
    [ ! -e "$cutoff" ] || echo 4096 >"$cutoff" # flash-only volumes have none, and nothing to put there
    "$pattern" "$@" || status=$?
    [ ! -e "$cutoff" ] || echo 0 >"$cutoff"
    return "$status"
}

# put_into_cache DEVICE SEED: what random reads miss goes into the cache. Reads of one block can't be part hit, part miss.
put_into_cache() {
    "$pattern" random "$2" 500 "$unit" 0 "$(blockdev --getsz "$1")" 0 >/tmp/reads
    "$pattern" read "$1" </tmp/reads
}

verify() { # verify DEVICE SALT CONTENT WHEN
    reading verify "$1" "$2" <"$3" >/tmp/verify && return
    complain "$1 $4: $(head -n 5 /tmp/verify)"
}
