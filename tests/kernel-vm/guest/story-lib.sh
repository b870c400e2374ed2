# Helpers of the experiments of docs/internals/coherence.md §12, on the driver and, with the same steps, on ubcache served to the kernel's
# nbd client.   who=bcache|ubcache; . /share/story-lib.sh
# /dev/vda is the backing disk, /dev/vdb the cache, /dev/vdc the other leg of a mirror. Blocks have 4 KiB. A byte fills each
# write: aa is what was there, bb a write W past the cache, dd a write D to the cache. Lines of results begin with the
# experiment; the last word is the verdict.
. /lib/guest-lib.sh
sectors=$(blockdev --getsz /dev/vda)
data=2 # the first block of the volume on the backing disk
cache=/dev/vdb

modprobe -a dm-mod dm-delay dm-flakey dm-mirror

# table NAME LINES: makes the device, or gives it another table.
table() {
    if [ -e "/dev/mapper/$1" ]; then
        printf '%s\n' "$2" | dmsetup reload "$1"
        dmsetup resume "$1"
    else
        printf '%s\n' "$2" | dmsetup create "$1"
    fi
}
# delayed NAME DEVICE MILLISECONDS [MILLISECONDS]: its writes take so long, and its reads; flushes do not
delayed() {
    table "$1" "0 $(blockdev --getsz "$2") delay $2 0 ${4:-0} $2 0 $3 $2 0 0"
}
plain() { table backing "0 $sectors linear /dev/vda 0"; }

put() { # put BLOCK COUNT BYTE [fua] [flush] [cut]: one write; says ok or EIO
    /share/blocks write "$device" "$@"
}
get() { # get BLOCK [COUNT]: one read; says which bytes came
    /share/blocks read "$device" "$1" "${2:-1}"
}
on_disk() { # on_disk BLOCK [COUNT]: the same of the volume's blocks on the backing disk, past everything
    /share/blocks read /dev/vda $(($1 + data)) "${2:-1}"
}
flush() { /share/blocks flush "$device"; }

start_bcache() {
    bcache_register "$cache" /dev/mapper/backing
    bcache_settle bcache0
    device=/dev/bcache0
    echo 0 >/sys/block/bcache0/bcache/writeback_running
}
mode_bcache() { echo "$1" >/sys/block/bcache0/bcache/cache_mode; }
cutoff_bcache() { echo "$1" >/sys/block/bcache0/bcache/sequential_cutoff; }
journal_delay_bcache() { echo "$1" >"$(bcache_set)/journal_delay_ms"; }
stop_bcache() { bcache_stop; }
start_ubcache() {
    /share/ubcache serve -C "$cache" -B /dev/mapper/backing --nbd unix:/tmp/nbd --control /tmp/control \
        --set sequential_cutoff=0 --set writeback_running=0 \
        --set congested_read_threshold_us=0 --set congested_write_threshold_us=0 ${serve_options:-} >/tmp/serve 2>/tmp/log &
    wait_until grep -q ^ready /tmp/serve || { cat /tmp/log; exit 1; }
    modprobe nbd
    nbd-client -unix /tmp/nbd -N "$(awk '$1 == "export" {print $2}' /tmp/serve)" /dev/nbd0 >/dev/null
    device=/dev/nbd0
}
set_ubcache() { /share/ubcache set "$1" --control /tmp/control >/dev/null; }
mode_ubcache() { set_ubcache "cache_mode=$1"; }
cutoff_ubcache() { set_ubcache "sequential_cutoff=$1"; }
journal_delay_ubcache() { set_ubcache "journal_delay_ms=$1"; }
stop_ubcache() {
    nbd-client -d /dev/nbd0 >/dev/null
    /share/ubcache stop --control /tmp/control >/dev/null
    wait
}
start() { "start_$who"; }
stop() { "stop_$who"; }
mode() { "mode_$who" "$1"; }
cutoff() { "cutoff_$who" "$1"; }
journal_delay() { "journal_delay_$who" "$1"; }
