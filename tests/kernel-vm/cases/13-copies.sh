# Run numbers (docs/internals/coherence.md A5, docs/reference/format.md §14) with turns of the driver in between: what it leaves of them in the
# superblocks, that ubcache takes the set over from it, and that copies of an earlier state are refused.
#
#   ubcache ─▶ copy "first" ─▶ ubcache ─▶ copy "second" ─▶ the driver, stopped or cut off ─▶ copy "driver"
#
# A trial serves a cache and a backing device out of these copies.
# keep_as STATE NAME: a copy of the set, with what it holds, and what is dirty in the cache
keep_as() {
    local dirty=/dev/null
    mkdir "$work/$2/$1"
    cp --sparse=always "$work/$2/cache.img" "$work/$2/backing0.img" "$work/$2/$1"
    cp "$work/$2/content0" "$work/$2/$1"
    case $1,$2 in
    # The driver writes some of the rest back before it is told not to.
    driver,writeback* | driver,changes*) dirty=$work/$2/operations0 ;;
    *,writeback*) dirty=$work/$2/content0 ;;
    esac
    cp "$dirty" "$work/$2/$1/dirty"
}

# trial_of NAME CACHE BACKING: a set of its own, $trial, with the cache and the backing device of these states
trial_of() {
    trial=trial
    rm -rf "${work:?}/$trial"
    mkdir "$work/$trial"
    cp --sparse=always "$work/$1/$2/cache.img" "$work/$1/$3/backing0.img" "$work/$trial"
    cp "$work/$1/parameters" "$work/$trial"
    cache=$2 what="$1: cache as of $2, backing device as of $3"
}
# on_disk_content NAME: what the backing device of $trial has by itself; the data begins 8 KiB in.
on_disk_content() {
    (
        . "$work/$trial/parameters"
        tail -c +8193 "$work/$trial/backing0.img" >"$work/$trial/data.img"
        "$pattern" identify "$work/$trial/data.img" "$(volume_salt 0)"
        rm "$work/$trial/data.img"
    )
}
sums() { (cd "$work/$trial" && sha256sum cache.img backing0.img); }
unlike() { # unlike WORDS...: fails the case
    note "$what: $*"
    tail -n 3 "$work/$trial"/serve.log >&2
    exit 1
}

# goes_on CONTENT [OPTION]...: it is served, with this content, and once more after the stop.
goes_on() {
    local content=$1 once
    shift
    [ "$content" = "$work/$trial/content0" ] || cp "$content" "$work/$trial/content0"
    ubcache_start "$trial" "$@" || unlike "refused, with: $*"
    each_volume "$trial" verify_volume
    ubcache_stop "$trial" >/dev/null
    ubcache_start "$trial" || unlike "refused at the next start, after: $*"
    each_volume "$trial" verify_volume
    ubcache_stop "$trial" >/dev/null
}
# goes_on_with DIRTY [OPTION]...: the same, and what is dirty in the cache is there, over what the disk has.
goes_on_with() {
    local dirty=$1
    shift
    ubcache_start "$trial" "$@" || unlike "refused, with: $*"
    each_volume "$trial" identify_volume
    ubcache_stop "$trial" >/dev/null
    cat "$work/$trial/content0" "$dirty" | "$pattern" model >"$work/$trial/with-dirty"
    cmp "$work/$trial/content0" "$work/$trial/with-dirty" || unlike "dirty data is missing, with: $*"
    if ! cmp -s "$work/$trial/content0" <(cat "$work/disk-has" "$dirty" | "$pattern" model); then
        # Of what was dirty before its turn, the driver may have written back some, or all.
        [ "$cache $mode" = "driver writeback" ] || unlike "more than dirty data was kept, with: $*"
    fi
    goes_on "$work/$trial/content0"
}
identify_volume() { "$pattern" identify "$4" "$3" >"$1/content$2"; }
# not_served WORDS [OPTION]...: the message says WORDS, and names both.
not_served() {
    local words=$1
    shift
    : >"$work/$trial/serve.log"
    ! ubcache_start "$trial" "$@" 2>/dev/null || unlike "served, with: $*"
    rm -f "$work/$trial/daemon"
    for words in "$words" "$work/$trial/backing0.img"; do
        grep -qF -- "$words" "$work/$trial/serve.log" || unlike "the message does not say '$words'"
    done
}
# is_older WHICH: refused, as WHICH (the cache, the disk) is an older copy; both are named, and nothing was changed. `check`
# says the same.
is_older() {
    local before
    before=$(sums)
    not_served "$1 is an older copy"
    grep -qF "$work/$trial/cache.img" "$work/$trial/serve.log" || unlike "the message does not name the cache"
    ! "$ubcache" check "$work/$trial/cache.img" -B "$work/$trial/backing0.img" >"$work/$trial/check" 2>&1 ||
        unlike "check finds nothing"
    grep -qF "$1 is an older copy" "$work/$trial/check" || unlike "check says: $(<"$work/$trial/check")"
    [ "$(sums)" = "$before" ] || unlike "refused, and changed"
}
# each_choice NAME CACHE BACKING: the ways on, for copies that were refused
each_choice() {
    local dirty=$work/$1/$2/dirty state
    trial_of "$@"
    state=$("$ubcache" show "$work/$trial/backing0.img" | sed -nE 's/^dev\.data\.cache_state[[:space:]]+([0-9]).*/\1/p')
    on_disk_content >"$work/disk-has"
    # Dirty data on either side is not dropped by the way.
    if [ -s "$dirty" ] || [ "$state" = 2 ]; then
        not_served 'drop-clean-cache is not enough' --drop-clean-cache
        goes_on_with "$dirty" --believe-cache backing0.img
        trial_of "$@"
        goes_on "$work/disk-has" --believe-disk backing0.img
    else
        goes_on "$work/disk-has" --drop-clean-cache
    fi
}
# noticed: whether it is refused; said, as it is known that it can't always be.
noticed() {
    if ubcache_start "$trial" 2>/dev/null; then
        ubcache_stop "$trial" >/dev/null
        echo "not noticed"
    else
        rm -f "$work/$trial/daemon"
        echo refused
    fi
}

# bytes_of FILE AT COUNT: of the superblock, which is 4 KiB in
bytes_of() { od -An -v -tx1 -j $((4096 + $2)) -N "$3" "$1" | tr -d ' \n'; }
same() { [ "$(bytes_of "$1/$3" "$4" "$5")" = "$(bytes_of "$2/$3" "$4" "$5")" ] && echo same || echo changed; }

# writethrough and writeback stay what they were: clean, or dirty. In "changes" the driver is the first to leave dirty data.
for end in stop cut; do
    sets=(writethrough-$end writeback-$end changes-$end)
    for name in "${sets[@]}"; do
        mode=${name%-*}
        cache_mib_wanted=64 set_make ubcache "$name" "${mode/changes/writethrough}" 1 64k 512
        round=1
        for state in first second; do
            ubcache_station "$name" "$round" 100 >/dev/null
            round=$((round + 10))
            keep_as "$state" "$name"
        done
        [ "$mode" != changes ] || sed -i 's/^mode=.*/mode=writeback/' "$work/$name/parameters"
        set_writes "$name" 21 100
    done
    options='' expect=0
    [ "$end" = stop ] || options="cut=1" expect=137
    share_sets "${sets[@]}"
    boot turn.sh "${disks[@]}"
    expect=0

    for name in "${sets[@]}"; do
        mode=${name%-*}
        set_written "$name"
        keep_as driver "$name"
        second=$work/$name/second driver=$work/$name/driver
        say "$name: the driver left of the cache's superblock: table $(same "$second" "$driver" cache.img 3584 512)," \
            "mark $(same "$second" "$driver" cache.img 144 8), seq $(same "$second" "$driver" cache.img 112 8);" \
            "of the backing device's: number $(same "$second" "$driver" backing0.img 144 16)," \
            "last_mount $(same "$second" "$driver" backing0.img 200 4)"

        trial_of "$name" driver driver
        goes_on "$driver/content0"
        trial_of "$name" first driver
        is_older "the cache"
        each_choice "$name" first driver
        trial_of "$name" driver first
        is_older "the disk"
        each_choice "$name" driver first

        # Copies of the moment before the driver's turn are known by what the driver writes into the superblock of the backing
        # device, if it writes it at all.
        trial_of "$name" second driver
        if [ "$mode" = changes ]; then
            is_older "the cache"
            each_choice "$name" second driver
        else
            say "$what: $(noticed)"
        fi
        trial_of "$name" driver second
        say "$what: $(noticed)"

        # When ubcache has run the set again, what the driver left is old.
        ubcache_station "$name" 31 100 >/dev/null
        keep_as last "$name"
        trial_of "$name" driver last
        is_older "the cache"
        trial_of "$name" last driver
        is_older "the disk"
    done
done
