# The machine of the guide "virtual machines" by libvirt, as a user who may do nothing else, over `kill -9` of the daemon.
need_programs libvirtd virsh setpriv
[ "$(id -u)" = 0 ] || fail "20-libvirt runs libvirt as another user: run as root"
mkdir -p "$work/share" "$work/home/.config/libvirt"
chmod 711 "$all" "$work"
truncate -s 256M "$work/backing.img"
truncate -s 1G "$work/cache.img"
"$ubcache" make -C "$work/cache.img" -B "$work/backing.img" --label data >/dev/null
serve() {
    : >"$work/serve.out"
    "$ubcache" serve -C "$work/cache.img" -B "$work/backing.img" --mode writeback --control "$work/control" \
        --vhost-user "data=$work/data.guest" --socket-group nogroup --socket-mode 0660 >"$work/serve.out" 2>>"$work/serve.log" &
    daemon=$!
    until grep -q ^ready "$work/serve.out"; do
        kill -0 "$daemon" || { cat "$work/serve.log" >&2; return 1; }
        sleep 0.1
    done
}
serve

# The guest's kernel and initramfs, with the script for it.
mkdir "$work/extra"
install -m 755 "$here/guest/virtual-machine.sh" "$work/extra/script"
arguments=(kill1 kill2 kill3 upgrade)
declare -p arguments >"$work/extra/arguments"
touch "$work/extra/share-wanted"
(cd "$work/extra" && find . -print0 | cpio --null -o -H newc --quiet --owner root:root) >"$work/extra.cpio"
cat "$vm_dir/initramfs" "$work/extra.cpio" >"$work/initramfs"
cp -L "$vm_dir/vmlinuz" "$work/vmlinuz"

# The guide's machine, emulated, with a kernel to boot and what the script needs.
sed -n '/^<domain/,/^<\/domain/p' "$here/../../docs/guide/virtual-machines.md" >"$work/guide.xml"
sed "s|/run/ubcache/data.guest|$work/data.guest|; s/type='kvm'/type='qemu'/" "$work/guide.xml" |
    sed "s|</os>|<kernel>$work/vmlinuz</kernel><initrd>$work/initramfs</initrd>\\
<cmdline>console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on loglevel=6</cmdline>\\
</os><on_reboot>destroy</on_reboot>|" |
    sed "s|</devices>|<serial type='file'><source path='$work/home/console'/></serial>\\
<channel type='file'><source path='$work/home/output'/><target type='virtio' name='output'/></channel>\\
<channel type='file'><source path='$work/home/status'/><target type='virtio' name='status'/></channel>\\
<filesystem type='mount' accessmode='squash'><source dir='$work/share'/><target dir='share'/></filesystem>\\
</devices>|" >"$work/guest.xml"

# Another user: nobody, with libvirt's own daemon for users, without its logging daemon.
echo 'stdio_handler = "file"' >"$work/home/.config/libvirt/qemu.conf"
chown -R nobody:nogroup "$work/home" "$work/share"
as_nobody() {
    setpriv --reuid=nobody --regid=nogroup --clear-groups env -i HOME="$work/home" XDG_RUNTIME_DIR="$work/home" PATH="$PATH" LC_ALL=C "$@"
}
as_nobody libvirtd --timeout 600 >"$work/libvirtd.log" 2>&1 &
libvirtd=$!
guest() { as_nobody virsh -q -c qemu:///session "$@"; }
until guest list >/dev/null 2>&1; do kill -0 "$libvirtd" || fail "no libvirtd: $(<"$work/libvirtd.log")"; sleep 0.2; done
guest define "$work/guest.xml" >"$work/virsh.log" 2>&1 && guest start guest >>"$work/virsh.log" 2>&1 || {
    cat "$work/virsh.log" >&2
    kill "$libvirtd"
    exit 1
}
boots=1
is_running() { [ "$(guest domstate guest)" = running ]; }
is_said() { until [ -e "$work/share/$1" ]; do is_running || return 1; sleep 0.2; done; }
follow() {
    local kill
    for kill in 1 2 3; do
        is_said "kill$kill" || return
        kill -9 "$daemon"
        wait "$daemon" || true
        sleep 1
        serve || return
    done
    is_said upgrade || return
    "$ubcache" upgrade --control "$work/control" >/dev/null || return
    while is_running; do sleep 0.2; done
}
followed=0
follow || followed=$?
guest destroy guest >/dev/null 2>&1 || true
kill "$libvirtd"
"$ubcache" stop --control "$work/control" >/dev/null
wait "$daemon"
"$ubcache" check "$work/cache.img" >/dev/null
say "$(tail -n 1 "$work/home/output")"
driver_log "$work/home/console"
[ "$followed" = 0 ] && [[ "$(tail -n 1 "$work/home/output")" = *RIGHT ]]
