# A read that overlaps a write past the cache: the driver leaves the old block in the cache, ubcache does
# not (docs/internals/coherence.md). Only ubcache has to be right here.
mkdir -p "$work/share"
cp "$ubcache" "$work/share/ubcache"
for where in direct ext4; do
    for who in bcache ubcache ublk; do
        truncate -s 64M "$work/backing-$who-$where.img" "$work/cache-$who-$where.img"
        arguments="$who $where" boot race-bypass-write.sh \
            --disk "$work/backing-$who-$where.img" --disk "$work/cache-$who-$where.img" >"$work/$who-$where.out"
        say "$who, $where: $(tr '\n' ';' <"$work/$who-$where.out")"
        result=$(tail -n 1 "$work/$who-$where.out")
        [ "$who" = bcache ] || [ "$result" = FRESH ]
    done
done
