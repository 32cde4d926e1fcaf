# An image on a block device is read, served and attached as one in a file is; and a device that is taken away is an error.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
# A raw disk, and a qcow2 file that is padded as every device is.
qemu-img convert -O raw template.qcow2 disk.raw
truncate -s %1M template.qcow2
raw=$(losetup --find --show disk.raw)
packed=$(losetup --find --show template.qcow2)
for location in "$raw" "file://$raw" "$packed"; do
  same "bytes of $location" "$(digest disk.raw)" "$(thinorigin cat --no-cache "$location" | digest /dev/stdin)"
done
[[ $(thinorigin info --no-cache "$packed" --json) == *qcow2* ]]

device=$(thinorigin attach "$packed")
same "bytes of $device" "$(digest disk.raw)" "$(digest "$device")"
# A disk of our own is a block device, too.
same "bytes through two devices" "$(digest disk.raw)" "$(thinorigin cat --no-cache "$device" | digest /dev/stdin)"
thinorigin detach "$device"
losetup -d "$raw" "$packed"
refuses 1 thinorigin cat --no-cache "$raw"
becomes_true nothing_is_left
