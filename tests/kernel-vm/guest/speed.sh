# Guest script: requests for each second of the guest's processors, of the kernel's bcache, of ubcache by ublk and by NBD.
# /dev/vda is the disk, /dev/vdb the cache; both get formatted, again and again.
#   speed.sh ROUNDS REQUESTS
# The emulated processor has no counters, so what is counted is time of the guest's processors, in /proc/stat. The three take turns.
# Prints a line for each measurement: NAME LOAD REQUESTS-A-CPU-SECOND; at the end the medians, and each as a share of bcache's.
set -euo pipefail
. /lib/guest-lib.sh
rounds=$1 requests=$2
mode=writeback
modprobe -a ublk_drv nbd

start_bcache() {
    bcache_format /dev/vda /dev/vdb
    bcache_register /dev/vda /dev/vdb
    bcache_settle bcache0
    echo $mode >/sys/block/bcache0/bcache/cache_mode
    echo 0 >/sys/block/bcache0/bcache/writeback_running
    device=/dev/bcache0
}
stop_bcache() { bcache_stop; }
start_ubcache() { # start_ubcache [OPTION]...
    bcache_format /dev/vda /dev/vdb
    /share/ubcache serve -C /dev/vdb -B data=/dev/vda --nbd unix:/tmp/nbd --control /tmp/control --mode $mode \
        --set sequential_cutoff=0 --set congested_read_threshold_us=0 --set congested_write_threshold_us=0 \
        --set writeback_running=0 "$@" >/tmp/serve 2>/tmp/log &
    wait_until grep -q ^ready /tmp/serve || { cat /tmp/log; exit 1; }
}
start_ublk() {
    start_ubcache --ublk
    device=/dev/ublkb0
}
start_nbd() {
    start_ubcache
    nbd-client -unix /tmp/nbd -N data /dev/nbd0 >/dev/null
    device=/dev/nbd0
}
stop_ublk() {
    /share/ubcache stop --control /tmp/control >/dev/null
    wait
}
stop_nbd() {
    nbd-client -d /dev/nbd0 >/dev/null
    stop_ublk
}

# Hundredths of a second in which a processor was busy since the start.
busy() { awk '$1 == "cpu" {print $2 + $3 + $4 + $7 + $8}' /proc/stat; }
load() { # load NAME RW DEPTH
    local before after
    before=$(busy)
    fio --name=load --filename=$device --rw="$2" --bs=4k --iodepth="$3" --ioengine=libaio --direct=1 --size=64M \
        --number_ios="$requests" --norandommap --randseed="$round" --output=/tmp/fio >/dev/null 2>&1 || { cat /tmp/fio; exit 1; }
    after=$(busy)
    echo "$who $1 $((requests * 100 / (after - before)))" | tee -a /tmp/results
}

for ((round = 1; round <= rounds; round++)); do
    for who in bcache ublk nbd; do
        "start_$who"
        # Everything that is read is in the cache: it was written there.
        dd if=/dev/urandom of=$device bs=64k count=1024 oflag=direct status=none
        load hit-qd1 randread 1
        load hit-qd32 randread 32
        load write-qd1 randwrite 1
        load write-qd32 randwrite 32
        "stop_$who"
    done
done
median() { awk -v who="$1" -v load="$2" '$1 == who && $2 == load {print $3}' /tmp/results | sort -n | awk '{all[NR] = $1} END {print all[int((NR + 1) / 2)]}'; }
for load in hit-qd1 hit-qd32 write-qd1 write-qd32; do
    of_bcache=$(median bcache $load)
    line="$load:"
    for who in bcache ublk nbd; do
        now=$(median $who $load)
        line+=" $who $now ($((now * 100 / of_bcache)) %)"
    done
    echo "$line"
done
