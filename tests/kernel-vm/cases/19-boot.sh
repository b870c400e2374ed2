# A machine with systemd whose /etc/fstab mounts a block device of ubcached, and one by nbd-client of a set whose files lie on
# another mount: order at boot and at the end, crash, restart, power cut.
# What a file system over nbd-client says when its daemon is killed.
harmless+='|EXT4-fs \((vda|ublkb0|nbd0)\): |I/O error.* nbd0'
mkdir -p "$work/share"
tree=$work/tree
system_tree "$tree"
packaging=$here/../../packaging
install "$ubcache" "$tree/usr/bin/ubcache"
ln -s ubcache "$tree/usr/bin/ubcached"
install -m 644 "$packaging"/systemd/*.service "$packaging"/systemd/*.socket "$tree/lib/systemd/system"
cp -r "$packaging/systemd/ubcache-nbd@.service.d" "$tree/lib/systemd/system"
install -m 644 "$packaging/systemd/tmpfiles.conf" "$tree/usr/lib/tmpfiles.d/ubcache.conf"
install -m 644 "$packaging/udev/68-ubcache.rules" "$tree/lib/udev/rules.d"
install -D -m 644 "$packaging/systemd/ublk.conf" "$tree/etc/systemd/system/ubcached.service.d/ublk.conf"
unit() { # unit NAME FILE: writes a part of a unit
    mkdir -p "$tree/etc/systemd/system/$1.d"
    cat >"$tree/etc/systemd/system/$1.d/$2.conf"
}
starts_with() { # starts_with TARGET UNIT FILE
    mkdir -p "$tree/etc/systemd/system/$1.target.wants"
    ln -s "/lib/systemd/system/$3" "$tree/etc/systemd/system/$1.target.wants/$2"
}

# The first set: two disks.
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
starts_with multi-user ubcached.service ubcached.service

# The second set: files in a directory that is mounted.
mkdir -p "$tree/var/below" "$tree/srv/below" "$tree/srv/above" "$tree/srv/data"
"$ubcache" make -C "$tree/var/below/cache" -B "$tree/var/below/disk" --label mail --bucket 64k --size 64M >"$work/make2.out"
echo 'OPTIONS=-C /srv/below/cache -B /srv/below/disk --nbd unix:/run/ubcache/two.nbd' >"$tree/etc/ubcache/two.env"
printf 'SOCKET=/run/ubcache/two.nbd\nEXPORT=mail\n' >"$tree/etc/ubcache/nbd0.nbd"
printf '[Unit]\nRequiresMountsFor=/srv/below\n[Service]\nReadWritePaths=/srv/below\n' | unit ubcache@two.service files
printf '[Unit]\nPartOf=ubcache@two.service\nAfter=ubcache@two.service\n' | unit ubcache-nbd@nbd0.service ubcached
starts_with multi-user ubcache@two.service ubcache@.service

# What is mounted once there are file systems.
cat >"$tree/root/fstab" <<'END'
/dev/ubcache/by-label/data /srv/data ext4 _netdev,x-systemd.after=ubcached.service 0 2
/dev/nbd0 /srv/above ext4 _netdev,x-systemd.requires=ubcache-nbd@nbd0.service,x-systemd.wanted-by=remote-fs.target,x-systemd.wanted-by=dev-nbd0.device 0 2
END
echo '/var/below /srv/below none bind' >"$tree/etc/fstab"
system_image "$tree" "$work/root.img"

disks=(--disk "$work/backing.img" --disk "$work/cache.img")
life first boot.sh "${disks[@]}"
life after-stop boot.sh "${disks[@]}"
expect=137 life cut boot.sh "${disks[@]}"
life after-cut boot.sh "${disks[@]}"
say "$(tail -n 1 "$work/after-cut.out")"
[[ "$(tail -n 1 "$work/after-cut.out")" = *RIGHT ]]
