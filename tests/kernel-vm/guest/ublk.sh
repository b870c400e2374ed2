# Guest script: a volume as /dev/ublkbN. /dev/vda is the disk, /dev/vdb the cache; both get formatted.
#   ublk.sh kills MODE KILLS [OPTION]...   ext4 under a load that verifies itself, over `kill -9` of the daemon
#   ublk.sh upgrade UPGRADES [OPTION]...   the same, over upgrades
#   ublk.sh ends                           stops and removals: in use, not in use, of a dead daemon
#   ublk.sh refusals                       what is refused, and that everything else goes on
#   ublk.sh resize [OPTION]...             a flash-only volume grows under a mounted file system, where the driver can
#   ublk.sh larger                         so does the disk of a volume, and the file system with it
#   ublk.sh properties                     what the kernel knows of the device; discards and zeroes
#   ublk.sh readme                         the commands of the README, in /share/readme
#   ublk.sh memory                         dirty pages of a file system on the device in a cgroup with little memory
#   ublk.sh users                          a user without root makes the set, serves it, and uses the device
#   ublk.sh mortal                         devices without recovery end with their daemon, also under a file system
# OPTION is one of `ubcache serve`. The last line ends in RIGHT, or the script fails.
set -euo pipefail
. /lib/guest-lib.sh
scenario=$1
shift
mode=writeback
options=()
served=0
backing=/dev/vda
serve() { # serve [OPTION]...
    served=$((served + 1))
    : >"/tmp/serve$served"
    /share/ubcache serve -C /dev/vdb -B "data=$backing" --nbd unix:/tmp/nbd --control /tmp/control --mode "$mode" \
        "${options[@]}" --ublk "$@" >"/tmp/serve$served" 2>>/tmp/log &
    server=$!
    wait_until ready_or_gone || true
    is_ready || { tail -n 20 /tmp/log; return 1; }
}
is_ready() { grep -q ^ready "/tmp/serve$served"; }
ready_or_gone() { is_ready || ! kill -0 "$server" 2>/dev/null; }
kill_server() {
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
}
stop_server() {
    /share/ubcache stop --control /tmp/control >/dev/null
    wait "$server"
}
# has_ability NAME: of the driver, as `ubcache doctor` finds it
has_ability() { /share/ubcache doctor --json | tr -d ' \n' | grep -q "\"name\":\"$1\",\"there\":true"; }
fail_with() {
    echo "$*"
    tail -n 30 /tmp/log
    exit 1
}
# A file system under loads that check themselves: fio reads back every block, files are written, synced and compared,
# a database commits, and fsx, where the host has it, compares one file after every kind of change.
start_load() {
    mkfs.ext4 -q /dev/ublkb0
    mkdir -p /mnt
    mount -t ext4 /dev/ublkb0 /mnt
    # Time in the guest jumps with the host's load, so the load ends by a file.
    fio --name=verify --filename=/mnt/verify --size=16M --rw=randwrite --bs=4k --direct=1 --fsync=8 --ioengine=psync \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=64 --time_based --runtime=100000 --exitall \
        --output=/tmp/fio >/dev/null 2>&1 &
    fio=$!
    : >/tmp/load
    (
        number=0
        while [ -e /tmp/load ]; do
            number=$((number + 1))
            head -c $((4096 * (1 + number % 60))) /dev/urandom >/tmp/piece
            cp /tmp/piece "/mnt/file$((number % 20))"
            [ $((number % 3)) != 0 ] || sync
            echo 3 >/proc/sys/vm/drop_caches
            cmp /tmp/piece "/mnt/file$((number % 20))" || { echo "$number" >>/tmp/wrong; break; }
            echo "$number" >/tmp/copied
        done
    ) 2>>/tmp/wrong &
    copier=$!
    echo 0 >/tmp/copied
    start_database
    if command -v fsx >/dev/null; then
        fsx -S 7 -N 100000000 /mnt/fsx >/tmp/fsx 2>&1 &
        fsx=$!
    fi
}
# Each transaction adds a row and counts it: a lost one, or half of one, shows.
start_database() {
    sqlite3 /mnt/database 'CREATE TABLE row (number INTEGER PRIMARY KEY, content BLOB); CREATE TABLE total (rows INTEGER);
        INSERT INTO total VALUES (0);'
    echo 0 >/tmp/committed
    (
        number=0
        while [ -e /tmp/load ]; do
            number=$((number + 1))
            sqlite3 -bail /mnt/database "PRAGMA synchronous = FULL; BEGIN;
                INSERT INTO row VALUES ($number, randomblob(1000 + $number % 7 * 1000));
                UPDATE total SET rows = rows + 1; COMMIT;" || { echo "transaction $number failed" >>/tmp/wrong; break; }
            echo "$number" >/tmp/committed
        done
    ) 2>>/tmp/wrong &
    database=$!
}
# The loads that ran, for the last line.
loads() {
    local with_fsx="no fsx"
    [ -z "${fsx:-}" ] || with_fsx=fsx
    echo "$(copied) files, $(</tmp/committed) transactions, $with_fsx"
}
check_database() {
    local found expected
    expected="ok $(</tmp/committed) $(</tmp/committed)"
    found=$(sqlite3 /mnt/database 'PRAGMA integrity_check; SELECT count(*) FROM row; SELECT rows FROM total;' | xargs)
    [ "$found" = "$expected" ] || fail_with "the database has \"$found\", not \"$expected\""
}
copied() { cat /tmp/copied 2>/dev/null || true; }
has_copied() { local now; now=$(copied); [ "${now:-0}" -gt "$1" ] || [ -s /tmp/wrong ]; }
# The load gets somewhere: it ends in an error as well.
let_work() {
    local now
    now=$(copied)
    wait_until has_copied "${now:-0}" || fail_with "the load stands still"
    [ ! -s /tmp/wrong ] || fail_with "a file is not what was written: $(cat /tmp/wrong)"
}
end_load() {
    let_work
    rm /tmp/load
    wait "$copier" "$database"
    check_database
    if [ -n "${fsx:-}" ]; then
        kill -TERM "$fsx" 2>/dev/null || fail_with "fsx has ended: $(tail -n 20 /tmp/fsx)"
        wait "$fsx" || true
    fi
    kill -INT "$fio" 2>/dev/null || fail_with "the verifying load has ended: $(cat /tmp/fio)"
    wait "$fio" || true
    ! grep -qE 'verify: bad|err= *[1-9]|error=' /tmp/fio || fail_with "$(cat /tmp/fio)"
    [ ! -s /tmp/wrong ] || fail_with "$(cat /tmp/wrong)"
    umount /mnt
    e2fsck -fn /dev/ublkb0 >/tmp/fsck 2>&1 || fail_with "$(cat /tmp/fsck)"
}

modprobe ublk_drv
modprobe ext4
bcache_format /dev/vda /dev/vdb
case $scenario in
kills)
    mode=$1 kills=$2
    shift 2
    options=("$@")
    serve
    start_load
    for ((kill = 0; kill < kills; kill++)); do
        let_work
        sleep "0.$((kill * 7 % 10))"
        kill_server
        serve || fail_with "not served again after kill $kill"
    done
    end_load
    recovered=$(grep -c recovered=true /tmp/log)
    [ "$recovered" = "$kills" ] || fail_with "$recovered recoveries of $kills"
    stop_server
    [ ! -e /dev/ublkb0 ] || fail_with "the device is still there"
    echo "$kills kills in $mode ${options[*]}: $(loads): RIGHT"
    ;;
upgrade)
    upgrades=$1
    shift
    options=("$@")
    if [[ "$*" = *without\ reissue ]] && ! has_ability quiesce; then
        # Requests in flight at an upgrade fail then, as the reference says.
        echo "upgrades ${options[*]}: not tried, the driver has no quiesce: RIGHT"
        exit 0
    fi
    serve
    start_load
    for ((upgrade = 0; upgrade < upgrades; upgrade++)); do
        let_work
        /share/ubcache upgrade --control /tmp/control || fail_with "no upgrade"
    done
    end_load
    stop_server
    echo "$upgrades upgrades ${options[*]}: $(loads): RIGHT"
    ;;
ends)
    serve
    mkfs.ext4 -q /dev/ublkb0
    mkdir -p /mnt
    mount -t ext4 /dev/ublkb0 /mnt
    echo before >/mnt/file
    # In use: it stays, and the next daemon goes on with it.
    stop_server
    [ -e /dev/ublkb0 ] || fail_with "a device in use is gone"
    (echo after >>/mnt/file && sync && : >/tmp/synced) &
    serve
    wait_until test -e /tmp/synced
    [ "$(xargs </mnt/file)" = "before after" ] || fail_with "the file is wrong"
    ! /share/ubcache remove data --control /tmp/control 2>/tmp/why || fail_with "removed while it is mounted"
    grep -q 'in use' /tmp/why || fail_with "$(cat /tmp/why)"
    umount /mnt
    stop_server
    [ ! -e /dev/ublkb0 ] || fail_with "a device that is not in use stays"
    # Of a daemon that does not come back.
    serve
    kill_server
    /share/ubcache ublk list | grep -q 'export data' || fail_with "not listed: $(/share/ubcache ublk list)"
    wait_until /share/ubcache ublk remove 0 >/tmp/removed
    [ ! -e /dev/ublkb0 ] || fail_with "not removed"
    serve
    e2fsck -fn /dev/ublkb0 >/tmp/fsck 2>&1 || fail_with "$(cat /tmp/fsck)"
    stop_server
    echo "ends: RIGHT"
    ;;
refusals)
    rmmod ublk_drv
    ! serve >/tmp/said || fail_with "served without the driver"
    grep -q 'modprobe ublk_drv' /tmp/said || fail_with "$(cat /tmp/said)"
    modprobe ublk_drv
    serve 7
    [ -b /dev/ublkb7 ] || fail_with "no /dev/ublkb7"
    dd if=/dev/vda of=/tmp/other bs=1M count=64 status=none
    /share/ubcache make -C /tmp/cache2 -B /tmp/disk2 --size 64M --bucket 64k >/dev/null
    # The number of another set's device: that set is not served, and this one goes on.
    ! /share/ubcache serve -C /tmp/cache2 -B /tmp/disk2 --control /tmp/control2 --page-cache --ublk 7 >/tmp/said 2>&1 ||
        fail_with "two sets have one device"
    grep -q 'in use' /tmp/said || fail_with "$(cat /tmp/said)"
    dd if=/dev/ublkb7 of=/dev/null bs=4k count=16 iflag=direct status=none || fail_with "the first set does not go on"
    # The device of a dead daemon of another set.
    kill_server
    ! /share/ubcache serve -C /tmp/cache2 -B /tmp/disk2 --control /tmp/control2 --page-cache --ublk 7 >/tmp/said 2>&1 ||
        fail_with "the device of another set was taken"
    grep -q 'ubcache ublk remove 7' /tmp/said || fail_with "$(cat /tmp/said)"
    serve 7
    ! serve --ublk-without magic 2>/dev/null >/tmp/said || fail_with "an unknown ability"
    # A device that is there, and one that this kernel's driver can't make: the daemon before it goes on.
    ! /share/ubcache serve -C /tmp/cache2 -B /tmp/disk2 --control /tmp/control2 --page-cache --ublk --ublk-require unprivileged \
        >/tmp/said 2>&1 || fail_with "what is not for root is served to root"
    grep -q "can't be had" /tmp/said || fail_with "$(cat /tmp/said)"
    if ! has_ability quiesce; then
        ! /share/ubcache serve -C /tmp/cache2 -B /tmp/disk2 --control /tmp/control2 --page-cache --ublk \
            --ublk-require recovery,quiesce >/tmp/said 2>&1 || fail_with "served without what is required"
        grep -q "kernel's driver lacks quiesce" /tmp/said || fail_with "$(cat /tmp/said)"
        [ ! -e /dev/ublkb0 ] || fail_with "a device was made all the same"
    fi
    /share/ubcache doctor | grep -q 'block devices (ublk): yes' || fail_with "$(/share/ubcache doctor)"
    /share/ubcache stop --control /tmp/control >/dev/null
    echo "refusals: RIGHT"
    ;;
resize)
    options=("$@")
    at_once() { has_ability update-size && [[ "${options[*]}" != *without\ update-size* ]]; }
    serve
    /share/ubcache flash create grows --size 64M --control /tmp/control >/dev/null
    device() { /share/ubcache ublk list --json | tr -d ' \n' | grep -o '{[^{}]*"grows"[^{}]*}' | grep -o '/dev/ublkb[0-9]*'; }
    wait_until device >/tmp/device
    device=$(</tmp/device)
    wait_until test -b "$device"
    is_of() { [ "$(blockdev --getsize64 "$device")" = $(($1 << 20)) ]; }
    is_of 64 || fail_with "$device has $(blockdev --getsize64 "$device") bytes"
    mkfs.ext4 -q "$device"
    mkdir -p /mnt
    mount -t ext4 "$device" /mnt
    head -c 1048576 /dev/urandom >/mnt/file
    sum=$(md5sum </mnt/file)
    /share/ubcache flash resize grows --size 96M --control /tmp/control >/dev/null || fail_with "not resized"
    if at_once; then
        wait_until is_of 96 || fail_with "$device has still $(blockdev --getsize64 "$device") bytes"
        at="at once"
    else
        umount /mnt
        stop_server
        serve
        is_of 96 || fail_with "a new $device has $(blockdev --getsize64 "$device") bytes"
        mount -t ext4 "$device" /mnt
        at="when made anew"
    fi
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(md5sum </mnt/file)" = "$sum" ] || fail_with "the file is not the same"
    head -c 1048576 "$device" >/dev/null
    dd if=/mnt/file of="$device" bs=1M seek=95 count=1 oflag=direct conv=notrunc status=none || fail_with "no writes at the new end"
    umount /mnt
    e2fsck -fn "$device" >/tmp/fsck 2>&1 || fail_with "$(cat /tmp/fsck)"
    stop_server
    echo "larger $at ${options[*]}: RIGHT"
    ;;
larger)
    modprobe dm_mod
    dmsetup create backing --table "0 $((128 << 11)) linear /dev/vda 0"
    backing=/dev/mapper/backing
    serve
    sectors() { cat /sys/block/ublkb0/size; }
    before=$(sectors)
    mkfs.ext4 -q /dev/ublkb0
    mkdir -p /mnt
    mount -t ext4 /dev/ublkb0 /mnt
    head -c 8388608 /dev/urandom >/mnt/file
    sum=$(md5sum </mnt/file)
    dmsetup load backing --table "0 $((192 << 11)) linear /dev/vda 0"
    dmsetup resume backing
    /share/ubcache resize data --control /tmp/control >/tmp/said || fail_with "not resized"
    if ! has_ability update-size; then
        umount /mnt
        stop_server
        serve
        mount -t ext4 /dev/ublkb0 /mnt
    fi
    [ "$(sectors)" = $((before + (64 << 11))) ] || fail_with "$before sectors, then $(sectors): $(cat /tmp/said)"
    resize2fs /dev/ublkb0 >/tmp/fs 2>&1 || fail_with "$(cat /tmp/fs)"
    head -c 83886080 /dev/urandom >/mnt/more || fail_with "the file system has not become larger"
    more=$(md5sum </mnt/more)
    sync
    kill_server
    serve
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(md5sum </mnt/file) $(md5sum </mnt/more)" = "$sum $more" ] || fail_with "a file is not the same"
    umount /mnt
    e2fsck -fn /dev/ublkb0 >/tmp/fsck 2>&1 || fail_with "$(cat /tmp/fsck)"
    stop_server
    dmsetup remove backing
    echo "larger with its disk: RIGHT"
    ;;
properties)
    serve
    is() { # is NAME VALUE: of the queue
        [ "$(cat "/sys/block/ublkb0/queue/$1")" = "$2" ] || fail_with "$1: $(cat "/sys/block/ublkb0/queue/$1"), not $2"
    }
    is logical_block_size 512
    is physical_block_size 4096
    is minimum_io_size 4096
    is optimal_io_size 1048576
    is max_sectors_kb 1024
    is discard_max_bytes $((1 << 30))
    is write_zeroes_max_bytes $((1 << 30))
    is write_cache 'write back'
    is fua 1
    is rotational 0
    [ "$(cat /sys/block/ublkb0/ro)" = 0 ] || fail_with "it is read-only"
    head -c 8388608 /dev/urandom >/tmp/data
    part() { dd if="$1" bs=512 skip=$(($2 / 512)) count=$(($3 / 512)) status=none | md5sum; }
    same() { [ "$(part /dev/ublkb0 "$1" "$3")" = "$(part /tmp/data "$2" "$3")" ]; }
    zeroes() { [ "$(part /dev/ublkb0 "$1" "$2")" = "$(part /dev/zero 0 "$2")" ]; }
    dd if=/tmp/data of=/dev/ublkb0 bs=1M oflag=direct status=none
    # FUA is how a write with O_SYNC reaches a disk that has it.
    fio --name=fua --filename=/dev/ublkb0 --offset=16M --size=64k --rw=write --bs=4k --direct=1 --sync=1 --ioengine=psync \
        --verify=crc32c --do_verify=1 >/tmp/fio 2>&1 || fail_with "$(cat /tmp/fio)"
    blkdiscard -z -o 1048576 -l 1048576 /dev/ublkb0 || fail_with "no zeroes"
    blkdiscard -o 4194304 -l 1048576 /dev/ublkb0 || fail_with "no discard"
    dd if=/tmp/data of=/dev/ublkb0 bs=512 count=3 seek=16384 oflag=direct conv=notrunc status=none
    kill_server
    serve
    echo 3 >/proc/sys/vm/drop_caches
    same 0 0 1048576 && zeroes 1048576 1048576 && same 2097152 2097152 2097152 && same 5242880 5242880 3145728 &&
        same 8388608 0 1536 || fail_with "the data is not what was written"
    stop_server
    # A volume that may not be written.
    options=(--read-only)
    serve
    [ "$(cat /sys/block/ublkb0/ro)" = 1 ] || fail_with "it is not read-only"
    ! dd if=/dev/zero of=/dev/ublkb0 bs=4k count=1 oflag=direct status=none 2>/dev/null || fail_with "it was written"
    same 0 0 1048576 || fail_with "it reads something else"
    stop_server
    echo "properties: RIGHT"
    ;;
mortal)
    options=(--ublk-without recovery)
    mkdir -p /mnt
    # Mounted when its daemon dies: the next daemon makes another device.
    serve
    mkfs.ext4 -q /dev/ublkb0
    mount -t ext4 /dev/ublkb0 /mnt
    echo there >/mnt/file
    sync
    kill_server
    serve || fail_with "not served again beside a device that is mounted"
    [ -b /dev/ublkb1 ] || fail_with "no other device: $(ls /dev/ublk*)"
    umount /mnt
    stop_server
    [ ! -e /dev/ublkc0 ] && [ ! -e /dev/ublkc1 ] || fail_with "left: $(ls /dev/ublk*)"
    # Mounted at a stop, which does not wait for its users.
    serve
    mount -t ext4 /dev/ublkb0 /mnt
    [ "$(</mnt/file)" = there ] || fail_with "what was flushed is not there"
    stop_server
    umount /mnt
    wait_until test ! -e /dev/ublkc0
    # An upgrade: the next program makes a device of its own.
    serve
    /share/ubcache upgrade --control /tmp/control >/dev/null || fail_with "no upgrade"
    /share/ubcache status --control /tmp/control --json | grep -q /dev/ublkb || fail_with "no device after an upgrade"
    stop_server
    echo "mortal: RIGHT"
    ;;
users)
    # The part of udev is played here, with the program that the rule runs.
    echo 'user:x:1000:1000::/tmp:/bin/bash' >>/etc/passwd
    echo 'user:x:1000:' >>/etc/group
    chown user:user /dev/vda /dev/vdb
    as_user() { su user -c "exec $(printf '%q ' "$@")"; }
    serve_as_user() { # serve_as_user [OPTION]...
        served=$((served + 1))
        : >"/tmp/serve$served"
        su user -c "exec /share/ubcache serve -C /dev/vdb -B data=/dev/vda --nbd unix:/tmp/nbd --control /tmp/control \
            --mode writeback --ublk $*" >"/tmp/serve$served" 2>>/tmp/log &
        server=$!
        wait_until ready_or_gone || true
        is_ready || { tail -n 20 /tmp/log; return 1; }
    }
    is_gone() { [ ! -e /dev/ublkb0 ]; }
    owner_of() { stat -c %u "$1" 2>/dev/null; }
    users_has() { [ "$(owner_of "$1")" = 1000 ]; }
    : >/tmp/rule
    (
        while [ -e /tmp/rule ]; do
            for device in /dev/ublk[bc]*; do
                # Of root's own device udev has heard once.
                if [[ $device != *7 ]] && [ "$(owner_of "$device")" = 0 ] && owner=$(/share/ubcache ublk owner "${device#/dev/ublk?}" 2>/dev/null); then
                    chown "${owner/ /:}" "$device"
                fi
            done
            sleep 0.1
        done
    ) &
    rule=$!
    dd if=/dev/zero of=/dev/vda bs=4k count=2 oflag=direct status=none
    dd if=/dev/zero of=/dev/vdb bs=4k count=2 oflag=direct status=none
    as_user /share/ubcache make --bucket 64k -C /dev/vdb -B /dev/vda >/dev/null
    ! serve_as_user >/tmp/said || fail_with "a user may use the control device"
    grep -q 67-ublk-users.rules /tmp/said || fail_with "$(cat /tmp/said)"
    chown root:user /dev/ublk-control
    chmod 660 /dev/ublk-control
    ! serve_as_user --ublk-require recovery >/tmp/said || fail_with "a user's device has no recovery"
    grep -q 'without CAP_SYS_ADMIN lacks recovery' /tmp/said || fail_with "$(cat /tmp/said)"
    # A device of root, beside which the user's is made.
    /share/ubcache make -C /tmp/cache2 -B /tmp/disk2 --size 64M --bucket 64k >/dev/null
    /share/ubcache serve -C /tmp/cache2 -B /tmp/disk2 --control /tmp/control2 --page-cache --ublk 7 >/tmp/other 2>&1 &
    other=$!
    wait_until grep -q ^ready /tmp/other || fail_with "$(cat /tmp/other)"
    ! serve_as_user 7 >/tmp/said || fail_with "a user has the device of root"
    grep -q 'the number is in use' /tmp/said || fail_with "$(cat /tmp/said)"
    serve_as_user || fail_with "not served by a user"
    [ "$(owner_of /proc/$server)" = 1000 ] || fail_with "it is not the user who serves"
    wait_until users_has /dev/ublkb0
    as_user mkfs.ext4 -q /dev/ublkb0
    mkdir -p /mnt
    mount -t ext4 /dev/ublkb0 /mnt
    head -c 8388608 /dev/urandom >/mnt/file
    sum=$(md5sum </mnt/file)
    umount /mnt
    as_user e2fsck -fn /dev/ublkb0 >/tmp/fsck 2>&1 || fail_with "$(cat /tmp/fsck)"
    listed=$(as_user /share/ubcache ublk list)
    [[ $listed = *"made by user 1000"* && $listed != *ublkb7* ]] || fail_with "listed: $listed"
    ! as_user /share/ubcache ublk remove 7 2>/dev/null || fail_with "a user has removed the device of root"
    # The device ends with its daemon, and the next one makes a new one: what was flushed is there.
    for kill in 1 2; do
        kill_server
        wait_until is_gone
        serve_as_user || fail_with "not served again after kill $kill"
        wait_until users_has /dev/ublkb0
        as_user fio --name=verify --filename=/dev/ublkb0 --offset=128M --size=2M --rw=randwrite --bs=4k --direct=1 \
            --ioengine=psync --verify=crc32c --do_verify=1 --end_fsync=1 >/tmp/fio 2>&1 || fail_with "$(cat /tmp/fio)"
        mount -t ext4 -o ro /dev/ublkb0 /mnt
        [ "$(md5sum </mnt/file)" = "$sum" ] || fail_with "the file is not the same after kill $kill"
        umount /mnt
    done
    if has_ability update-size; then
        as_user /share/ubcache flash create grows --size 16M --control /tmp/control >/dev/null
        wait_until users_has /dev/ublkb1
        as_user /share/ubcache flash resize grows --size 32M --control /tmp/control >/tmp/said
        [ "$(blockdev --getsize64 /dev/ublkb1)" = $((32 << 20)) ] || fail_with "$(cat /tmp/said)"
    fi
    as_user /share/ubcache stop --control /tmp/control >/dev/null
    wait "$server"
    is_gone || fail_with "the user's device stays"
    # Without the rule nobody gives the user the device: it is refused, and removed by root.
    rm /tmp/rule
    wait "$rule"
    ! serve_as_user >/tmp/said || fail_with "served without the rule"
    grep -q 'is not given to its user' /tmp/said || fail_with "$(cat /tmp/said)"
    /share/ubcache ublk remove 0 >/dev/null
    kill -0 "$other" || fail_with "the daemon of root has ended"
    /share/ubcache stop --control /tmp/control2 >/dev/null
    wait "$other"
    echo "users: RIGHT"
    ;;
readme)
    PATH=$PATH:/share
    mapfile -t commands </share/readme
    dd if=/dev/zero of=/dev/vda bs=4k count=2 oflag=direct status=none
    dd if=/dev/zero of=/dev/vdb bs=4k count=2 oflag=direct status=none
    [ "${#commands[@]}" = 3 ] || fail_with "${#commands[@]} commands"
    eval "${commands[0]}"
    eval "${commands[1]}"
    server=$!
    wait_until test -b /dev/ublkb0
    eval "${commands[2]}"
    echo there >/mnt/file
    umount /mnt
    ubcache stop >/dev/null
    wait "$server"
    echo "readme: RIGHT"
    ;;
memory)
    options=(--lock-memory)
    serve
    mkfs.ext4 -q /dev/ublkb0
    mkdir -p /mnt /sys/fs/cgroup
    mount -t ext4 /dev/ublkb0 /mnt
    grep -q ' /sys/fs/cgroup ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup
    echo +memory >/sys/fs/cgroup/cgroup.subtree_control
    mkdir -p /sys/fs/cgroup/small
    echo 48M >/sys/fs/cgroup/small/memory.max
    # Every page of the group is dirty soon, and waits for the daemon, which is outside of it.
    (
        echo "$BASHPID" >/sys/fs/cgroup/small/cgroup.procs
        for round in 1 2 3; do
            dd if=/dev/zero of=/mnt/dirty bs=1M count=160 status=none
        done
        : >/tmp/written
    )
    sync
    [ -e /tmp/written ] || fail_with "the writer was ended"
    kill -0 "$server" || fail_with "the daemon was ended"
    umount /mnt
    e2fsck -fn /dev/ublkb0 >/tmp/fsck 2>&1 || fail_with "$(cat /tmp/fsck)"
    stop_server
    echo "memory: RIGHT"
    ;;
esac
