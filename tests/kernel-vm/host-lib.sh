# Helpers for the cases, on the host; sourced by run-all.
#
# A set is a directory $work/NAME with cache.img, backing0.img, … and
#   parameters   what it is: seed mode volumes bucket block unit
#   contentN     what volume N has to hold, in the form of `pattern model`
# The guest sees $work/share, where stations leave plans and find results.

backing_mib=32

# set_make MAKER NAME MODE VOLUMES BUCKET BLOCK: formats a new set. MAKER is ubcache, make-bcache or apart:
# not attached, the cache by ubcache and the backing devices by make-bcache; or adopted: one disk, taken as it is,
# whose header is the only one in $UBCACHE_HEADERS.
set_make() {
    local maker=$1 name=$2 mode=$3 volumes=$4 bucket=$5 block=$6 seed unit=1 index
    local dir=$work/$name backings=()
    seed=$(printf '%s' "$name" | cksum | cut -d ' ' -f 1)
    [ "$block" = 512 ] || unit=8
    # Room for everything several times over, so that the driver need not evict.
    local cache_mib=${cache_mib_wanted:-288}
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
        make-bcache --bucket "$bucket" --block "$block" -C "$dir/cache.img" -B "$dir"/backing?.img >"$dir/make.log"
        ;;
    apart)
        "$ubcache" make -C "$dir/cache.img" --bucket "$bucket" --block "$block" >"$dir/make.log"
        make-bcache --block "$block" -B "$dir"/backing?.img >>"$dir/make.log"
        ;;
    adopted)
        "$ubcache" make -C "$dir/cache.img" --adopt "$dir/backing0.img" --bucket "$bucket" --block "$block" \
            >"$dir/make.log"
        ln -s "$UBCACHE_HEADERS"/*.header "$dir/header"
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
    rm "$work/$1/daemon"
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
    # Status 1: something is left to an operator, such as a volume that is detached.
    { "$ubcache" status --control "$work/$1/control" --json || [ "$?" = 1 ]; } |
        sed -n '/"volumes"/,/"absent"/p' | grep -o '"dirty_bytes": *[0-9]*' | grep -o '[0-9]*$'
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
load_volume() {
    "$pattern" load "$4" "$3" "$1/log$2" $(<"$1/load") 2>"$1/load-error$2" &
    echo $! >"$1/loader$2"
}
has_flushed() {
    [ "$(cat "$1/log$2".* 2>/dev/null | wc -l)" -ge 3 ]
}

# ubcache_load SECONDS NAME: a load on all volumes of the set, and kill -9 in the middle of it: when each volume's load
# has got somewhere, however slow the machine is, and SECONDS more.
ubcache_load() {
    local seconds=$1 name=$2 try loader
    ubcache_start "$name" || return
    each_volume "$name" load_volume
    for try in $(seq 600); do
        ! each_volume "$name" has_flushed || break
        sleep 0.1
    done
    sleep "$seconds"
    for loader in "$work/$name"/loader?; do
        kill -0 "$(<"$loader")" 2>/dev/null || {
            note "$name: the load ended too early: $(cat "$work/$name"/load-error?)"
            return 1
        }
    done
    ubcache_kill "$name"
    for loader in "$work/$name"/loader?; do
        while kill -0 "$(<"$loader")" 2>/dev/null; do sleep 0.1; done
        rm "$loader"
    done
    if grep -q wrong "$work/$name"/load-error?; then
        note "$name: a read under load: $(cat "$work/$name"/load-error?)"
        return 1
    fi
}

# check_loaded NAME: ubcache after a load that was cut off: what was flushed is there; what is there
# counts from now on.
check_loaded() {
    ubcache_start "$1" || return
    each_volume "$1" check_loaded_volume || return
    ubcache_stop "$1"
    rm -f "$work/$1"/{load,log*}
}
check_loaded_volume() {
    if ! "$pattern" check-load "$4" "$3" "$1/log$2" $(<"$1/load") <"$1/content$2" >"$1/verify$2.log"; then
        note "ubcache: volume $2 of ${1##*/} after the load:"
        head -n 5 "$1/verify$2.log" >&2
        return 1
    fi
    tail -n 1 "$1/verify$2.log" >>"$1/dirty-load"
    "$pattern" identify "$4" "$3" >"$1/content$2"
}

# was_dirty NAME: in writeback each volume had dirty data before and after the last turn.
was_dirty() {
    local dirty
    [[ $1 = writeback* ]] || return 0
    for dirty in $(cat "$work/$1"/dirty-{before,after}); do
        case $dirty in
        0 | 0.0k)
            note "$1: a volume without dirty data at a hand-over"
            return 1
            ;;
        esac
    done
}

# the_combinations VOLUMES: sets MODE VOLUMES BUCKET BLOCK, one a line
the_combinations() {
    local mode bucket block
    for mode in writeback writethrough; do
        for bucket in 64k 512k; do
            for block in 512 4096; do
                echo "$mode $1 $bucket $block"
            done
        done
    done
}

# make_sets MAKER VOLUMES: the sets of the_combinations; leaves their names in sets[].
make_sets() {
    local mode volumes bucket block
    sets=()
    while read -r mode volumes bucket block; do
        sets+=("$mode-$volumes-$bucket-$block")
        set_make "$1" "${sets[-1]}" "$mode" "$volumes" "$bucket" "$block" || return
    done < <(the_combinations "$2")
}

# share_sets SET...: puts the sets into $work/share for the guest and their disks into disks[].
# In the guest's /share there are
#   options      what the script wants to know
#   sets         a line for each: NAME CACHE BACKING..., with HEADER:DISK for a disk that was adopted
#   NAME/        parameters (mode, salt[]), contentN, and perhaps operationsN with afterN, load
share_sets() {
    local name dir index letter=0 letters=({a..z})
    disks=()
    rm -rf "$work/share"
    mkdir -p "$work/share"
    cp "$pattern" "$here/guest/sets.sh" "$work/share"
    printf '%s\n' "${options:-}" >"$work/share/options"
    for name; do
        dir=$work/$name
        mkdir "$work/share/$name"
        (
            . "$dir/parameters"
            echo "mode=$mode unit=$unit"
            for index in $(seq 0 $((volumes - 1))); do
                echo "salt[$index]=$(volume_salt "$index")"
            done
        ) >"$work/share/$name/parameters"
        for file in "$dir"/{content,operations,after,log}[0-9]* "$dir/load"; do
            [ ! -e "$file" ] || cp "$file" "$work/share/$name"
        done
        printf '%s' "$name" >>"$work/share/sets"
        for file in "$dir/cache.img" "$dir"/backing?.img; do
            printf ' ' >>"$work/share/sets"
            if [ -e "$dir/header" ] && [ "$file" != "$dir/cache.img" ]; then
                printf '/dev/vd%s:' "${letters[letter++]}" >>"$work/share/sets"
                disks+=(--disk "$dir/header")
            fi
            printf '/dev/vd%s' "${letters[letter++]}" >>"$work/share/sets"
            disks+=(--disk "$file")
        done
        echo >>"$work/share/sets"
    done
}

# linux_station ROUND COUNT SET...: one boot of the VM, in which each set has its turn: verified,
# written to (COUNT random writes, if not 0), verified, garbage collected, stopped.
linux_station() {
    local round=$1 count=$2 name file disks
    shift 2
    for name; do
        rm -f "$work/$name"/{operations,after,dirty-}*
        [ "$count" = 0 ] || set_writes "$name" "$round" "$count"
    done
    share_sets "$@"
    boot station.sh "${disks[@]}" || return
    for name; do
        cp "$work/share/$name"/{dirty-*,content*} "$work/$name"
        rm -f "$work/$name"/{load,log*}
        [ "$count" = 0 ] || set_written "$name"
    done
}

# linux_load SECONDS SET...: one boot with loads on all sets at once, which ends in a power failure.
# The sets need a file load.
linux_load() {
    local options="seconds=$1" name disks
    shift
    share_sets "$@"
    expect=137 boot load.sh "${disks[@]}" || return
    for name; do
        cp "$work/share/$name"/log* "$work/$name"
    done
}

# boot SCRIPT DISKS-AND-OPTIONS...: runs SCRIPT in the guest and looks through the kernel's log. The
# status that the guest has to end with is in $expect (0).
boot() {
    local script=$1 status=0
    shift
    # On a busy host the emulated processor sometimes loses its timer before the disks are there.
    local attempt console
    for attempt in 1 2 3 4 5; do
        boots=$((boots + 1)) status=0 console=$work/console-$boots
        "$here/run" "$@" --share "$work/share" --timeout "${boot_timeout:-1200}" --memory 1536 --log "$console" \
            -- "$here/guest/$script" ${arguments:-} || status=$?
        [ "$status" = 123 ] || break
    done
    read_races
    driver_log "$console" || return
    [ "$status" = "${expect:-0}" ] || {
        note "the guest ended with status $status instead of ${expect:-0}"
        return 1
    }
}

# read_races: says where the driver lost a race of its own that leaks a request or answers EIO (see README): if the
# case fails, this may be why.
read_races() {
    local file
    for file in "$work"/share/*/races; do
        [ ! -e "$file" ] || [ "$(<"$file")" = 0 ] ||
            say "$(basename "${file%/races}"): the driver took a bucket from under a read, $(<"$file") times (cache_read_races)"
    done
}

# driver_log CONSOLE: fails if the driver said anything that it does not say when all is well, or the
# kernel anything that it says only in trouble.
driver_log() {
    local bad stale
    bad=$(tr -d '\r' <"$1" | grep -aE 'bcache: |WARNING: |BUG: |Oops|Call Trace|blocked for more|I/O error|hung_task' |
        grep -avE "$harmless" || true)
    # Not a warning to the driver (it prints it as information), but to be known: see docs/internals/interop.md.
    stale=$(grep -ac "$stale_dirty" "$1" || true)
    [ "$stale" = 0 ] || say "the driver's information 'stale dirty pointer': $stale times in ${1##*/}"
    [ -z "$bad" ] || {
        note "the kernel's log:"
        printf '%s\n' "$bad" | head -n 20 >&2
        return 1
    }
}
stale_dirty='bch_extent_bad() stale dirty pointer'
harmless='bcache: (bch_extent_bad\(\) stale dirty pointer, '
harmless+='|register_bdev\(\) registered backing device [a-z0-9-]+$'
harmless+='|register_cache\(\) registered cache device [a-z0-9-]+$'
harmless+='|bch_cached_dev_attach\(\) Caching [a-z0-9-]+ as bcache[0-9]+ on set [0-9a-f-]+$'
harmless+='|bch_journal_replay\(\) journal replay done, [0-9]+ keys in [0-9]+ entries, seq [0-9]+-?[0-9]*$'
harmless+='|run_cache_set\(\) invalidating existing data$'
harmless+='|bcache_device_free\(\) bcache[0-9]+ stopped$'
harmless+='|bch_cached_dev_run\(\) cached dev [a-z0-9-]+ is running already$' # an attach by hand
harmless+='|cached_dev_detach_finish\(\) Caching disabled for [a-z0-9-]+$'
harmless+='|cache_set_free\(\) Cache set [0-9a-f-]+ unregistered$)'

# lacks WORDS FILE: fails if the file has these words. (`! grep` by itself ends no case, as set -e does not count it.)
lacks() {
    if grep -F -- "$1" "$2" >&2; then
        note "this should not be in $2"
        return 1
    fi
}

# say WORDS...: goes below the case's line in the output of run-all.
say() {
    echo "$*" >>"$work/said"
}

# At the end of a case, however it ends.
stop_daemons() {
    local file
    for file in "$work"/*/daemon; do
        [ ! -e "$file" ] || kill -9 "$(<"$file")" 2>/dev/null || true
    done
}

note() {
    echo "    $*" >&2
}

# system_tree DIRECTORY: a Debian with systemd, which `system_image` makes a disk of. It is made once;
# UBCACHE_VM_TREE is one that is there already.
system_tree() {
    local packages=systemd-sysv,udev,kmod,e2fsprogs,nbd-client,curl,libnbd-bin
    local base=${UBCACHE_VM_TREE:-$cache_dir/system-$(cksum <<<"$packages" | cut -d ' ' -f 1)}
    [ "$(id -u)" = 0 ] || fail "a Debian is made with mmdebstrap: run as root"
    need_programs mmdebstrap mke2fs
    if [ ! -e "$base" ]; then
        rm -rf "$base.new"
        mmdebstrap --quiet --mode=root --variant=apt --format=directory --dpkgopt=force-unsafe-io \
            --include="$packages" bookworm "$base.new"
        mv "$base.new" "$base"
    fi
    cp -a "$base" "$1"
    mkdir -p "$1/var/log/journal" "$1/share" "$1/mnt"
    # The script that `run` has put into the guest, when everything has been started.
    cat >"$1/etc/systemd/system/vm-script.service" <<'END'
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/bash -c '. /run/vm/arguments; bash /run/vm/script "$${arguments[@]}" </dev/null >/dev/output 2>&1; echo "exit $$?" >/dev/status; systemctl poweroff'
END
    mkdir -p "$1/etc/systemd/system/graphical.target.wants"
    ln -s /etc/systemd/system/vm-script.service "$1/etc/systemd/system/graphical.target.wants"
}

# system_image TREE FILE: makes a disk of the tree, for `run --system`, and removes the tree.
system_image() {
    rm -f "$2"
    truncate -s 1G "$2"
    mke2fs -q -t ext4 -d "$1" "$2"
    rm -r "$1"
}

# life NAME SCRIPT [OPTION OF run]...: boots the system; what the script says is in $work/NAME.out.
life() {
    local name=$1 script=$2
    shift 2
    arguments=$name boot "$script" --system "$work/root.img" "$@" >"$work/$name.out" || {
        tail -n 60 "$work/$name.out" >&2
        return 1
    }
}
