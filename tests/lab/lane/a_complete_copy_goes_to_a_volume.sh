# An image that is all in the cache is written to a volume and to a file, and both are the disk. A device that is mounted, in
# a volume group or too small is refused, with not a byte of it changed.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
wanted=$(guest_digest template.qcow2)
serve_over_http "$work"
cache=$work/cache
export=(thinorigin cache export --cache "$cache" "$HTTP_URL/template.qcow2")
thinorigin warm --cache "$cache" "$HTTP_URL/template.qcow2"
"$lab/http" stop "$work/http"

# To a volume that holds other things. It is larger than the disk: the rest is zeros.
pvcreate -q "$SCRATCH"
vgcreate -q copies "$SCRATCH"
lvcreate -q --yes --wipesignatures n -L 68M -n disk copies
head -c 68M /dev/zero | tr '\0' x >/dev/copies/disk
"${export[@]}" /dev/copies/disk
same "bytes of the volume" "$wanted" "$(head -c 64M /dev/copies/disk | digest /dev/stdin)"
same "bytes behind the disk" 0 "$(tail -c 4M /dev/copies/disk | tr -d '\0' | wc -c)"

# The copy is a file system, and while that is mounted nothing else goes there.
mkdir mounted
mount -o ro /dev/copies/disk mounted
same "a file of the copy" 1 "$(<mounted/etc/debian_version)"
refuses 3 "${export[@]}" /dev/copies/disk
[[ $said == *"/dev/copies/disk: it is in use"* ]] || fail "said: $said"
# Nor to a device under a volume group.
before=$(head -c 1M "$SCRATCH" | sha256sum)
refuses 3 "${export[@]}" "$SCRATCH"
[[ $said == *"$SCRATCH: it is in use"* ]] || fail "said: $said"
same "beginning of the physical volume" "$before" "$(head -c 1M "$SCRATCH" | sha256sum)"
umount mounted
same "bytes of the volume that was mounted" "$wanted" "$(head -c 64M /dev/copies/disk | digest /dev/stdin)"
"${export[@]}" /dev/copies/disk

# Too small: nothing is written.
lvcreate -q --yes --wipesignatures n -L 60M -n small copies
head -c 60M /dev/zero | tr '\0' y >/dev/copies/small
before=$(digest /dev/copies/small)
refuses 3 "${export[@]}" /dev/copies/small
[[ $said == *"$(( 60 << 20 )) bytes, the disk has $(( 64 << 20 ))"* ]] || fail "said: $said"
same "bytes of a small volume" "$before" "$(digest /dev/copies/small)"

# To a file, for a loop device.
"${export[@]}" "$work/copy.raw"
same "bytes of the file" "$wanted" "$(digest copy.raw)"
loop=$(losetup --find --show --read-only copy.raw)
same "bytes of the loop device" "$wanted" "$(digest "$loop")"
mount -o ro "$loop" mounted
cmp mounted/bin/busybox /bin/busybox
umount mounted
losetup --detach "$loop"

vgremove -q --yes copies
pvremove -q "$SCRATCH"
