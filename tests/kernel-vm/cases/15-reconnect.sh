# The kernel's NBD client, run again when it ends, goes on after each `kill -9` of the daemon: acknowledged writes are there.
mkdir -p "$work/share"
cp "$ubcache" "$work/share/ubcache"
truncate -s 64M "$work/backing.img" "$work/cache.img"
# Requests in flight at a kill fail.
harmless+='|I/O error, dev nbd|Buffer I/O error on dev nbd|block nbd0: '
arguments="5" boot reconnect.sh --disk "$work/backing.img" --disk "$work/cache.img" >"$work/reconnect.out"
say "$(tail -n 1 "$work/reconnect.out")"
[[ "$(tail -n 1 "$work/reconnect.out")" = *RIGHT ]]
