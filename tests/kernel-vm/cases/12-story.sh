# The experiments of docs/coherence.md §12: the driver and ubcache, with the same steps in the same virtual machine. Only
# ubcache has to be right; what the driver does is said.
rounds=${UBCACHE_VM_ROUNDS:-2}
mkdir -p "$work/share"
cp "$ubcache" "$pattern" "$work/share"
[ "${ubcache##*/}" = ubcache ] || mv "$work/share/${ubcache##*/}" "$work/share/ubcache"

# disks_of NAME COUNT: new disks, in disks[]
disks_of() {
    local letter
    disks=()
    for letter in $(seq "$2"); do
        truncate -s 64M "$work/$1-$letter.img"
        disks+=(--disk "$work/$1-$letter.img")
    done
}
told() { # told NAME: what the guest printed goes below the case's line
    while read -r line; do say "${1%%-*}: $line"; done <"$work/$1.out"
}
bad='STALE$|OLDER$|LOST$|DISAGREE$'
# Some writes are meant to fail.
harmless+='|bcache: bch_count_backing_io_errors\(\) |I/O error, dev (dm-|nbd|bcache)|Buffer I/O error on dev '
for who in bcache ubcache; do
    for form in live mirror; do
        disks_of "$who-$form" 3
        arguments="$who $form $rounds ${UBCACHE_VM_SLOW:-5000}" boot story.sh "${disks[@]}" >"$work/$who-$form.out"
        told "$who-$form"
        [ "$who" = bcache ] || ! grep -qE "$bad" "$work/$who-$form.out"
    done
    for form in 3d 3f; do
        disks_of "$who-$form" 2
        arguments="$who power $form" expect=137 boot story.sh "${disks[@]}" >"$work/$who-$form.out"
        arguments="$who look $form" boot story.sh "${disks[@]}" >>"$work/$who-$form.out"
        told "$who-$form"
        [ "$who" = bcache ] || ! grep -qE "$bad" "$work/$who-$form.out"
    done
done
