# The usual client of the kernel's NBD devices connects to an export of ours, by name, over a unix socket.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
background serve thinorigin serve --unix "$work/nbd.sock" --no-cache other=template.qcow2 disk=template.qcow2
becomes_true grep -q ^ready serve.log

nbd-client -unix "$work/nbd.sock" /dev/nbd0 -N disk
becomes_true test "$(blockdev --getsize64 /dev/nbd0)" -eq $((64 << 20))
same "bytes of the device" "$(guest_digest template.qcow2)" "$(digest /dev/nbd0)"
same "read-only flag" 1 "$(blockdev --getro /dev/nbd0)"
mount -o ro /dev/nbd0 /mnt
same "file in the device" 'PRETTY_NAME="a small template"' "$(cat /mnt/etc/os-release)"
umount /mnt
nbd-client -d /dev/nbd0

# Asked to end, the server does so of itself.
read -r pid _ <serve.pid
kill -TERM "$pid"
wait "$pid"
