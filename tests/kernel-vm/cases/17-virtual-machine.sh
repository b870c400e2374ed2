# Volumes as disks of the VM by vhost-user-blk: a file system, `kill -9` and upgrade of the daemon under it, a disk
# that grows, with its file or alone.
mkdir -p "$work/share"
truncate -s 256M "$work/backing.img"
truncate -s 1G "$work/cache.img"
"$ubcache" make -C "$work/cache.img" -B "$work/backing.img" >/dev/null
serve() {
    : >"$work/serve.out"
    "$ubcache" serve -C "$work/cache.img" -B "$work/backing.img" --mode writeback --control "$work/control" \
        --vhost-user "backing.img=$work/disk" "${flash[@]}" >"$work/serve.out" 2>>"$work/serve.log" &
    daemon=$!
    until grep -q ^ready "$work/serve.out"; do
        kill -0 "$daemon" || { cat "$work/serve.log" >&2; return 1; }
        sleep 0.1
    done
}
flash=()
serve
"$ubcache" flash create grows --size 64M --control "$work/control" >/dev/null
"$ubcache" stop --control "$work/control" >/dev/null
wait "$daemon"
flash=(--vhost-user "grows=$work/grows")
serve
# The lines of the guide, and those of a second disk.
guide=$here/../../docs/guide/virtual-machines.md
sed -n '/^## QEMU/,/^## libvirt/p' "$guide" | grep '^-' >"$work/guide"
sed "s|/run/ubcache/data.guest|$work/disk|" "$work/guide" >"$work/options"
grep -E '^-(chardev|device)' "$work/guide" | sed "s|/run/ubcache/data.guest|$work/grows|; s/\<data\>/grows/" >>"$work/options"
is_said() { until [ -e "$work/share/$1" ]; do kill -0 "$booting" || return 1; sleep 0.1; done; }
arguments="kill1 kill2 kill3 upgrade grow" boot virtual-machine.sh --options "$work/options" >"$work/guest.out" &
booting=$!
for kill in 1 2 3; do
    is_said "kill$kill"
    kill -9 "$daemon"
    wait "$daemon" || true
    sleep 1
    serve
done
is_said upgrade
"$ubcache" upgrade --control "$work/control" >/dev/null
is_said grow
"$ubcache" flash resize grows --size 96M --control "$work/control" >/dev/null
truncate -s "$((320 * 1048576 + 8192))" "$work/backing.img"
"$ubcache" resize backing.img --control "$work/control" >/dev/null
wait "$booting"
"$ubcache" stop --control "$work/control" >/dev/null
wait "$daemon"
"$ubcache" check "$work/cache.img" >/dev/null
say "$(tail -n 1 "$work/guest.out")"
[[ "$(tail -n 1 "$work/guest.out")" = *RIGHT ]]
