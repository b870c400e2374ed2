# A machine with systemd whose /etc/fstab mounts a block device of ubcached: order at boot and at the end, crash, power cut.
[ "$(id -u)" = 0 ] || fail "19-boot makes a Debian with mmdebstrap: run as root"
need_programs mmdebstrap mke2fs
harmless+='|EXT4-fs \((vda|ublkb0)\): '
mkdir -p "$work/share"

# The system: made once, and copied.
base=$cache_dir/system
if [ ! -e "$base" ]; then
    rm -rf "$base.new"
    mmdebstrap --quiet --mode=root --variant=minbase --format=directory --dpkgopt=force-unsafe-io \
        --include=systemd-sysv,udev,kmod,e2fsprogs bookworm "$base.new"
    mkdir -p "$base.new/var/log/journal" "$base.new/share"
    mv "$base.new" "$base"
fi
tree=$work/tree
cp -a "$base" "$tree"
packaging=$here/../../packaging
install "$ubcache" "$tree/usr/bin/ubcache"
ln -s ubcache "$tree/usr/bin/ubcached"
install -m 644 "$packaging"/systemd/*.service "$packaging"/systemd/*.socket "$tree/lib/systemd/system"
install -m 644 "$packaging/systemd/tmpfiles.conf" "$tree/usr/lib/tmpfiles.d/ubcache.conf"
install -m 644 "$packaging/udev/68-ubcache.rules" "$tree/lib/udev/rules.d"
install -D -m 644 "$packaging/systemd/ublk.conf" "$tree/etc/systemd/system/ubcached.service.d/ublk.conf"

truncate -s 256M "$work/backing.img" "$work/cache.img"
"$ubcache" make -C "$work/cache.img" -B "$work/backing.img" --label data --bucket 64k >"$work/make.out"
set=$("$ubcache" show "$work/cache.img" --udev | sed -n 's/^UBCACHE_SET_UUID=//p')
mkdir -p "$tree/etc/ubcache"
cat >"$tree/etc/ubcache/one.toml" <<END
cache = "UUID=$set"
mode = "writeback"

[[volume]]
name = "data"
backing = "LABEL=data"
export = "ublk"
END
echo '/dev/ubcache/by-label/data /srv ext4 _netdev,x-systemd.after=ubcached.service 0 2' >"$tree/etc/fstab"
# The script that `run` has put into the guest, when everything has been started.
cat >"$tree/etc/systemd/system/vm-script.service" <<'END'
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/bash -c '. /run/vm/arguments; bash /run/vm/script "$${arguments[@]}" </dev/null >/dev/output 2>&1; echo "exit $$?" >/dev/status; systemctl poweroff'
END
for unit in ubcached.service:multi-user vm-script.service:graphical; do
    mkdir -p "$tree/etc/systemd/system/${unit#*:}.target.wants"
    for directory in /lib /etc; do
        [ ! -e "$tree$directory/systemd/system/${unit%:*}" ] ||
            ln -s "$directory/systemd/system/${unit%:*}" "$tree/etc/systemd/system/${unit#*:}.target.wants"
    done
done
truncate -s 1G "$work/root.img"
mke2fs -q -t ext4 -d "$tree" "$work/root.img"
rm -r "$tree"

station() { # station NAME: one life of the machine
    arguments=$1 boot boot.sh --system "$work/root.img" --disk "$work/backing.img" --disk "$work/cache.img" >"$work/$1.out" || {
        tail -n 40 "$work/$1.out" >&2
        return 1
    }
}
station first
station after-stop
expect=137 station cut
station after-cut
say "$(tail -n 1 "$work/after-cut.out")"
[[ "$(tail -n 1 "$work/after-cut.out")" = *RIGHT ]]
