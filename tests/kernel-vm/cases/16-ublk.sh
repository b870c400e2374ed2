# Block devices of ublk: ext4 under load over `kill -9` and upgrades in every mode, stops, removals, refusals, little memory.
mkdir -p "$work/share"
cp "$ubcache" "$work/share/ubcache"
# Requests of a device that is removed while it is read, and the messages of memory that is short.
harmless+='|EXT4-fs \(ublkb0\): (mounted|unmounting) filesystem'
ublk() { # ublk NAME ARGUMENT...
    local name=$1
    shift
    truncate -s 0 "$work/backing.img" "$work/cache.img"
    truncate -s 256M "$work/backing.img" "$work/cache.img"
    arguments="$*" boot_timeout=3000 boot ublk.sh --disk "$work/backing.img" --disk "$work/cache.img" >"$work/$name.out"
    say "$(tail -n 1 "$work/$name.out")"
    [[ "$(tail -n 1 "$work/$name.out")" = *RIGHT ]]
}
# The commands of the README, for disks of the guest.
sed -n '/^## A file system in three commands/,/^## Over NBD/p' "$here/../../README.md" | grep -E '^(ubcache|mkfs)' |
    sed 's|/dev/nvme0n1p4|/dev/vdb --bucket 64k|1; s|/dev/sdb|/dev/vda|; s/ *#.*//' >"$work/share/readme"
sed -i '2s/ --bucket 64k//' "$work/share/readme"
ublk readme readme
ublk kills-writeback kills writeback "${UBCACHE_VM_KILLS:-200}"
for mode in writethrough writearound none; do
    ublk "kills-$mode" kills "$mode" 10
done
ublk copies kills writeback 10 --ublk-without user-copy
ublk queues kills writeback 10 --ublk-queues 3 --ublk-depth 8
ublk own-memory kills writeback 10 --ublk-without auto-buffers
# Linux 6.12 warns once when a device is recovered whose former daemon is no dead process: after an upgrade it is this one.
without_upgrade=$harmless
harmless+='|WARNING: .*ublk_ctrl_uring_cmd|Call Trace'
ublk upgrade upgrade 10
ublk reissued upgrade 5 --ublk-without quiesce
# Nothing is left to the next daemon that only a second delivery could save.
ublk answered upgrade 5 --ublk-without reissue
harmless=$without_upgrade
ublk ends ends
ublk resize resize
ublk grown-anew resize --ublk-without update-size
ublk larger larger
ublk properties properties
ublk refusals refusals
ublk users users
# What a file system says whose device has ended.
harmless+='|EXT4-fs.*ublkb|I/O error.*ublkb|JBD2.*ublkb'
ublk mortal mortal
ublk memory memory
