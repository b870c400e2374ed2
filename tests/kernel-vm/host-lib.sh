# Helpers for the cases, on the host; sourced by run-all.
#
# A set is a directory $work/NAME with cache.img, backing0.img, … and
#   parameters   what it is: seed mode volumes bucket block unit
#   contentN     what volume N has to hold, in the form of `pattern model`
# The guest sees $work/share, where stations leave plans and find results.

backing_mib=32

# set_make MAKER NAME MODE VOLUMES BUCKET BLOCK: formats a new set. MAKER is ubcache or make-bcache.
set_make() {
    local maker=$1 name=$2 mode=$3 volumes=$4 bucket=$5 block=$6 seed unit=1 index cache_mib=64
    local dir=$work/$name backings=()
    seed=$(printf '%s' "$name" | cksum | cut -d ' ' -f 1)
    [ "$block" = 512 ] || unit=8
    [ "$bucket" != 512k ] || cache_mib=288
    [ "$bucket" != 4k ] || cache_mib=${deep_cache_mib:-16}
    rm -rf "$dir"
    mkdir -p "$dir"
    declare -p seed mode volumes bucket block unit | sed 's/^declare -[-a-z]* //' >"$dir/parameters"
    truncate -s "${cache_mib}M" "$dir/cache.img"
    for index in $(seq 0 $((volumes - 1))); do
        backings+=(-B "$dir/backing$index.img")
        truncate -s "${backing_mib}M" "$dir/backing$index.img"
        : >"$dir/content$index"
    done
    case $maker in
    ubcache)
        "$ubcache" make -C "$dir/cache.img" "${backings[@]}" --bucket "$bucket" --block "$block" >"$dir/make.log"
        ;;
    make-bcache)
        # One after the other: make-bcache takes several backing devices after one -B only.
        make-bcache --bucket "$bucket" --block "$block" -C "$dir/cache.img" -B "$dir"/backing?.img >"$dir/make.log"
        ;;
    esac
}

# volume_salt INDEX: of the set whose parameters are loaded
volume_salt() {
    printf '0x%016x' $((0x9e3779b97f4a7c15 * (seed + 1) + $1))
}

# operations INDEX ROUND COUNT: random writes of many sizes; each round has its own generation.
operations() {
    local index=$1 round=$2 count=$3 last=$((backing_mib * 2048 - 16)) base=$((seed + $1 * 77 + $2 * 1000))
    "$pattern" random "$base" "$count" $((unit * 8)) 0 "$last" "$round"
    "$pattern" random $((base + 1)) $((count / 8)) $((unit * 32)) 0 "$last" $((round + 1))
    "$pattern" random $((base + 2)) $((count / 2)) "$unit" 0 "$last" $((round + 2))
}

# set_writes NAME ROUND COUNT: leaves operationsN in the set's directory, and the content after them
# in afterN.
set_writes() {
    local dir=$work/$1 index
    (
        . "$dir/parameters"
        for index in $(seq 0 $((volumes - 1))); do
            operations "$index" "$2" "$3" >"$dir/operations$index"
            { cat "$dir/content$index" "$dir/operations$index"; } | "$pattern" model >"$dir/after$index"
        done
    )
}

# set_written NAME: what was to be written is now what has to be there.
set_written() {
    local file
    for file in "$work/$1"/after?; do
        mv "$file" "${file/after/content}"
    done
}

# ubcache_start NAME [OPTION]...: serves the set; $dir/daemon has the process number.
ubcache_start() {
    local name=$1 dir=$work/$1 index backings=() try
    shift
    (
        . "$dir/parameters"
        for index in $(seq 0 $((volumes - 1))); do
            backings+=(-B "$dir/backing$index.img")
        done
        : >"$dir/serve.out"
        "$ubcache" serve -C "$dir/cache.img" "${backings[@]}" --nbd "unix:$dir/nbd" --control "$dir/control" \
            --mode "$mode" --set writeback_running=0 --set sequential_cutoff=0 \
            --set congested_read_threshold_us=0 --set congested_write_threshold_us=0 "$@" \
            >"$dir/serve.out" 2>>"$dir/serve.log" &
        echo $! >"$dir/daemon"
    )
    for try in $(seq 600); do
        ! grep -q ^ready "$dir/serve.out" || return 0
        kill -0 "$(<"$dir/daemon")" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$dir/serve.log" >&2
    note "ubcache does not serve $name"
    return 1
}

ubcache_gone() { # ubcache_gone NAME: waits for the end of the daemon
    local pid
    pid=$(<"$work/$1/daemon")
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}

ubcache_stop() {
    "$ubcache" stop --control "$work/$1/control" && ubcache_gone "$1"
}

ubcache_kill() {
    kill -9 "$(<"$work/$1/daemon")"
    ubcache_gone "$1"
}

# dirty_bytes NAME: of each volume, as ubcache counts them
dirty_bytes() {
    "$ubcache" status --control "$work/$1/control" --json | grep -o '"dirty_bytes": *[0-9]*' | grep -o '[0-9]*$'
}

each_volume() { # each_volume NAME FUNCTION: calls FUNCTION DIR INDEX SALT DEVICE for each volume
    local dir=$work/$1 index
    (
        . "$dir/parameters"
        for index in $(seq 0 $((volumes - 1))); do
            "$2" "$dir" "$index" "$(volume_salt "$index")" "nbd:$dir/nbd:backing$index.img" || exit 1
        done
    )
}

verify_volume() {
    "$pattern" verify "$4" "$3" <"$1/content$2" >"$1/verify$2.log" && return
    note "ubcache: volume $2 of ${1##*/} is wrong:"
    head -n 5 "$1/verify$2.log" >&2
    return 1
}
write_volume() {
    "$pattern" write "$4" "$3" <"$1/operations$2"
}

# ubcache_station NAME ROUND COUNT [stop|kill]: one turn of ubcache: what is there is verified, then
# new data is written, verified, and the set stopped; with kill, killed after a flush.
ubcache_station() {
    local name=$1 round=$2 count=$3 end=${4:-stop} dir=$work/$1
    ubcache_start "$name" || return
    dirty_bytes "$name" | xargs >"$dir/dirty-before"
    each_volume "$name" verify_volume || return
    if [ "$count" -gt 0 ]; then
        set_writes "$name" "$round" "$count"
        each_volume "$name" write_volume || return
        set_written "$name"
        each_volume "$name" verify_volume || return
    fi
    dirty_bytes "$name" | xargs >"$dir/dirty-after"
    if [ "$end" = kill ]; then
        each_volume "$name" flush_volume
        ubcache_kill "$name"
    else
        ubcache_stop "$name"
    fi
}
flush_volume() {
    "$pattern" flush "$4"
}

# linux_station ROUND COUNT END SET...: one boot of the VM, in which each set has its turn: verified,
# written to, verified; END is stop, power-cut (the last set is left running) or keep.
linux_station() {
    local round=$1 count=$2 end=$3 name dir index disks=() letter=0 status=0 log
    local letters=(a b c d e f g h i j k l m n o p q r s t u v w x y z)
    shift 3
    rm -rf "$work/share"
    mkdir -p "$work/share"
    cp "$pattern" "$work/share/pattern"
    echo "end=$end" >"$work/share/options"
    for name; do
        dir=$work/$name
        [ "$count" = 0 ] || set_writes "$name" "$round" "$count"
        mkdir "$work/share/$name"
        (
            . "$dir/parameters"
            echo "mode=$mode"
            echo "volumes=$volumes"
            for index in $(seq 0 $((volumes - 1))); do
                echo "salt[$index]=$(volume_salt "$index")"
            done
        ) >"$work/share/$name/parameters"
        cp "$dir"/content? "$work/share/$name"
        [ "$count" = 0 ] || cp "$dir"/operations? "$dir"/after? "$work/share/$name"
        printf '%s /dev/vd%s' "$name" "${letters[letter]}" >>"$work/share/sets"
        disks+=(--disk "$dir/cache.img")
        letter=$((letter + 1))
        for index in "$dir"/backing?.img; do
            printf ' /dev/vd%s' "${letters[letter]}" >>"$work/share/sets"
            disks+=(--disk "$index")
            letter=$((letter + 1))
        done
        echo >>"$work/share/sets"
    done
    boot "$here/guest/station.sh" "${disks[@]}" || return
    for name; do
        [ "$count" = 0 ] || set_written "$name"
        cp "$work/share/$name"/dirty-* "$work/$name"
    done
}

# boot SCRIPT DISKS-AND-OPTIONS...: runs SCRIPT in the guest and looks through the kernel's log. The
# status that the guest has to end with is in $expect (0).
boot() {
    local script=$1 status=0
    shift
    boots=$((boots + 1))
    local console=$work/console-$boots
    "$here/run" "$@" --share "$work/share" --timeout "${boot_timeout:-600}" --memory "${memory:-1536}" --log "$console" -- "$script" || status=$?
    driver_log "$console" || return
    [ "$status" = "${expect:-0}" ] || {
        note "the guest ended with status $status instead of ${expect:-0}"
        return 1
    }
}

# driver_log CONSOLE: fails if the driver said anything that it does not say when all is well, or the
# kernel anything that it says only in trouble.
driver_log() {
    local bad
    bad=$(tr -d '\r' <"$1" | grep -aE 'bcache|WARNING: |BUG: |Oops|Call Trace|blocked for more|I/O error|hung_task' |
        grep -avE "$harmless" || true)
    [ -z "$bad" ] || {
        note "the kernel's log:"
        printf '%s\n' "$bad" | head -n 20 >&2
        return 1
    }
}
harmless='bcache: (register_bdev\(\) registered backing device [a-z0-9-]+$'
harmless+='|register_cache\(\) registered cache device [a-z0-9-]+$'
harmless+='|bch_cached_dev_attach\(\) Caching [a-z0-9-]+ as bcache[0-9]+ on set [0-9a-f-]+$'
harmless+='|bch_journal_replay\(\) journal replay done, [0-9]+ keys in [0-9]+ entries, seq [0-9]+-?[0-9]*$'
harmless+='|run_cache_set\(\) invalidating existing data$'
harmless+='|bcache_device_free\(\) bcache[0-9]+ stopped$'
harmless+='|bch_cached_dev_run\(\) cached dev [a-z0-9-]+ is running already$' # an attach by hand
harmless+='|cached_dev_detach_finish\(\) Caching disabled for [a-z0-9-]+$'
harmless+='|cache_set_free\(\) Cache set [0-9a-f-]+ unregistered$)'

note() {
    echo "    $*" >&2
}
