# Guest script: /dev/vda and /dev/vdb are volumes by vhost-user-blk. A file system is made on the first and written to while the
# daemon is killed, and upgraded, when this script says so: the guest must see no error, and find everything. The second grows.
#   virtual-machine.sh STEP...   the files that ask for it, one after the other; with grow, both disks become larger
set -euo pipefail
. /lib/guest-lib.sh
[ "$(cat /sys/block/vda/queue/write_cache)" = "write back" ]
[ "$(cat /sys/block/vda/queue/discard_max_bytes)" -gt 0 ]
[ "$(cat /sys/block/vda/queue/write_zeroes_max_bytes)" -gt 0 ]
grows() { [[ " $* " = *" grow "* ]]; }
! grows "$@" || [ "$(cat /sys/block/vdb/size)" = $((64 << 11)) ]
mkfs.ext4 -q /dev/vda
mkdir -p /tmp/disk
mount -t ext4 /dev/vda /tmp/disk
head -c 65536 /dev/urandom >/tmp/piece
wrong=0 files=0
fio --name=verify --filename=/tmp/disk/verify --size=16M --rw=randwrite --bs=4k --direct=1 --fsync=8 --ioengine=psync \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=64 --time_based --runtime=100000 --exitall \
    --output=/tmp/fio >/dev/null 2>&1 &
fio=$!
write() { cat /tmp/piece >"/tmp/disk/$1"; printf '%s' "$1" >>"/tmp/disk/$1"; sync "/tmp/disk/$1"; }
for step; do
    [ "$step" != grow ] || continue
    touch "/share/$step"
    for ((file = 0; file < 100; file++)); do
        files=$((files + 1))
        write "$files"
    done
done
kill -INT "$fio" 2>/dev/null || { cat /tmp/fio; wrong=$((wrong + 1)); }
wait "$fio" || true
! grep -E 'verify: bad|err= *[1-9]|error=' /tmp/fio || wrong=$((wrong + 1))
umount /tmp/disk
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /tmp/disk
for ((file = 1; file <= files; file++)); do
    { cat /tmp/piece; printf '%s' "$file"; } | cmp -s - "/tmp/disk/$file" || wrong=$((wrong + 1))
done
rm /tmp/disk/1*
fstrim /tmp/disk 2>/dev/null || true
umount /tmp/disk
e2fsck -fn /dev/vda >/tmp/fsck || { cat /tmp/fsck; wrong=$((wrong + 1)); }
has_grown() { [ "$(cat /sys/block/vdb/size)" = $((96 << 11)) ] && [ "$(cat /sys/block/vda/size)" = $((320 << 11)) ]; }
if grows "$@"; then
    touch /share/grow
    wait_until has_grown
    dd if=/tmp/piece of=/dev/vdb bs=64k seek=1535 count=1 oflag=direct conv=fsync status=none
    dd if=/dev/vdb bs=64k skip=1535 count=1 iflag=direct status=none | cmp - /tmp/piece || wrong=$((wrong + 1))
fi
errors=$(dmesg | grep -c 'I/O error' || true)
if [ "$wrong" = 0 ] && [ "$errors" = 0 ]; then verdict=RIGHT; else verdict=WRONG; fi
echo "$*: $files files, $wrong wrong, $errors errors: $verdict"
