# libnbd's FUSE client shows an export of ours as a file: programs that know nothing of NBD read it.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

modprobe fuse
make_image template.qcow2 -c
background serve thinorigin serve --unix "$work/nbd.sock" --no-cache disk=template.qcow2
becomes_true grep -q ^ready serve.log
mkdir shown
background nbdfuse nbdfuse -r shown/disk.img "nbd+unix:///disk?socket=$work/nbd.sock"
becomes_true test -e shown/disk.img
same "size of the file" $((64 << 20)) "$(stat --format=%s shown/disk.img)"
same "bytes of the file" "$(guest_digest template.qcow2)" "$(digest shown/disk.img)"
mount -o ro,loop,noload shown/disk.img /mnt
same "file in it" 'PRETTY_NAME="a small template"' "$(cat /mnt/etc/os-release)"
umount /mnt
umount shown
becomes_true eval '! running nbdfuse.pid'
stop serve.pid
