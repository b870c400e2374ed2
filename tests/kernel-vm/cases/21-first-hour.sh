# The guide "first hour" in a machine with systemd, from the package to a disk that is mounted at boot: every command, in its
# order, on real block devices. UBCACHE_DEB=FILE is the package (default: cargo xtask package).
if [ -z "${UBCACHE_DEB:-}" ]; then
    need_programs cargo
    (cd "$here/../.." && cargo xtask package) >"$work/package.log" 2>&1 || { tail -n 20 "$work/package.log" >&2; exit 1; }
    UBCACHE_DEB=$(find "$here/../../target/debian" -name 'ubcache_*.deb')
fi
# What a file system over nbd-client says when its daemon is killed.
harmless+='|EXT4-fs \((vda|ublkb0|nbd0)\): |I/O error.* nbd0'
mkdir -p "$work/share"
tree=$work/tree
system_tree "$tree"
cp "$UBCACHE_DEB" "$tree/root"
# Blocks of commands, up to the section for those who have files only: a file for each.
mkdir "$tree/root/guide"
sed '/^## With files only/,$d' "$here/../../docs/guide/first-hour.md" |
    sed 's|/dev/nvme0n1p4|/dev/vdc|g; s|/dev/sdb|/dev/vdb|g' |
    awk -v dir="$tree/root/guide" '
        /^```/ {if (inside) {inside = 0} else {inside = 1; commands = $0 == "```"; blocks += commands} next}
        inside && commands {print > sprintf("%s/%02d", dir, blocks)}'
system_image "$tree" "$work/root.img"
truncate -s 256M "$work/backing.img"
truncate -s 512M "$work/cache.img"
disks=(--disk "$work/backing.img" --disk "$work/cache.img")
life guide first-hour.sh "${disks[@]}"
life again first-hour.sh "${disks[@]}"
say "$(tail -n 1 "$work/again.out")"
[[ "$(tail -n 1 "$work/again.out")" = *RIGHT ]]
