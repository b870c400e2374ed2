# The experiments of docs/internals/coherence.md §12: the driver and ubcache, with the same steps in the same virtual machine.
rounds=${UBCACHE_VM_ROUNDS:-2}
mkdir -p "$work/share"
cp "$ubcache" "$pattern" "$all/blocks" "$here/guest/story-lib.sh" "$work/share"
[ "${ubcache##*/}" = ubcache ] || mv "$work/share/${ubcache##*/}" "$work/share/ubcache"

# The last word of each line of an experiment, on the driver and on ubcache; there has to be at least one. + means one of them: in
# 3c the driver's journal may be faster than the cut on a busy host. - is any: the driver loses 2 and 4a-mirror now and then.
verdicts='
1              STALE     FRESH
1-sequential   STALE     FRESH
2              -         FRESH
3a             AGREE     AGREE
3b             AGREE     AGREE
3c             +DISAGREE AGREE
3d             DISAGREE  AGREE
3e             AGREE     AGREE
3f             LOST      KEPT
4a-delay       STALE     FRESH
4a-mirror      -         FRESH
4b             FORWARD   FORWARD
5a             KEPT      KEPT
5b             RIGHT     RIGHT
5c             OLDER     RIGHT
6a             AGREE     AGREE
6b             AGREE     AGREE
6c             LOST      RIGHT
6d             KEPT      KEPT
7              AGREE     AGREE
'
# The driver has to be as recorded where it is the kernel of docs/internals/interop.md; another one may be better, and is told about.
known=0
[ "$kernel_release" != 6.12.117+deb12-amd64 ] || known=1

# disks_of NAME MIB...: new disks, in disks[]
disks_of() {
    local name=$1 mib letter=0
    shift
    disks=()
    for mib; do
        letter=$((letter + 1))
        rm -f "$work/$name-$letter.img"
        truncate -s "${mib}M" "$work/$name-$letter.img"
        disks+=(--disk "$work/$name-$letter.img")
    done
}
verdict_of() { # verdict_of WHO EXPERIMENT: of each of its lines, once
    cat "$work/$1"-*.out | sed -n "s/^$2: .* \([A-Z]*\)\$/\1/p" | sort -u | xargs
}

# cut_off CUT: a boot that looks at the power cut before, and makes this one.
cut_off() {
    expect=137
    [ "$1" != - ] || expect=0
    arguments="$who $look $1" boot story-cuts.sh "${disks[@]}" >>"$work/$who-cuts.out"
    look=$1 expect=0
}

# Some writes are meant to fail.
harmless+='|bcache: bch_count_backing_io_errors\(\) |I/O error, dev (dm-|nbd|bcache)|Buffer I/O error on dev '
for who in bcache ubcache; do
    for form in delay mirror discard; do
        disks_of "$who-$form" 64 64 64
        [ "$form" != discard ] || disks_of "$who-$form" 256 64
        arguments="$who $form $rounds ${UBCACHE_VM_SLOW:-5000}" boot story-live.sh "${disks[@]}" >"$work/$who-$form.out"
    done

    disks_of "$who-cuts" 64 64
    look=-
    for cut in 3a 3b 3d 3e 3f 3c -; do cut_off "$cut"; done
    for try in 1 2 3; do
        if [ "$who" = bcache ] && [[ " $(verdict_of bcache 3c) " != *" DISAGREE "* ]]; then
            cut_off 3c
            cut_off -
        fi
    done
    while read -r line; do say "$who: $line"; done < <(cat "$work/$who"-*.out)
done

wrong=0 fits=
while read -r experiment driver ours; do
    for who in bcache ubcache; do
        want=$ours
        [ "$who" = ubcache ] || want=$driver
        found=$(verdict_of "$who" "$experiment")
        case $want in
        -) fits=${found:+1} ;;
        +*) [[ " $found " != *" ${want#+} "* ]] || fits=1 ;;
        *) [ "$found" != "$want" ] || fits=1 ;;
        esac
        [ -n "$fits" ] || {
            note "$experiment on $who: ${found:-no result}, and not $want"
            [ "$who" = bcache ] && [ -n "$found" ] && [ "$known" = 0 ] || wrong=1
        }
        fits=
    done
done < <(grep . <<<"$verdicts")
[ "$wrong" = 0 ]
