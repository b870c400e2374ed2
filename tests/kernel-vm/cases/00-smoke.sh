# The harness itself: the driver works in the VM in every cache mode.
mkdir -p "$work/share"
truncate -s 32M "$work/backing.img"
truncate -s 64M "$work/cache.img"
boot bcache-smoke.sh --disk "$work/backing.img" --disk "$work/cache.img"
