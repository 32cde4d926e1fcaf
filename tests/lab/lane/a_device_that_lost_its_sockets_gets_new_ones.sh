# A server that stood still for longer than the kernel's timer, as with its machine, has lost the device's sockets to it. It
# gives the device new ones, and who read meanwhile has waited and sees no error.
# It mostly waits.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
wanted=$(guest_digest template.qcow2)
background serve thinorigin serve --admin "unix:$work/admin.sock"
becomes_true grep -q ^ready serve.log
device=$(thinorigin attach "$work/template.qcow2" --admin "unix:$work/admin.sock")
read -r pid _ <serve.pid

# The timer is 30 s, which the kernel lets anybody change.
timer=/sys/block/${device#/dev/}/queue/io_timeout
same "the kernel's timer" 30000 "$(<"$timer")"
echo 4000 >"$timer"
kill -STOP "$pid"
# One read for each socket, and more.
for at in 0 8 16 24; do
  background "reader$at" dd if="$device" of="part$at" bs=1M skip=$at count=1 iflag=direct
done
# A request that was sent again on the other socket waits for as long there.
sleep 15
dmesg | grep 'block nbd' | tail -n 5
echo 30000 >"$timer"
kill -CONT "$pid"
becomes_true grep -q 'sockets that ended were replaced' serve.log
for at in 0 8 16 24; do
  tries=300
  while running "reader$at.pid"; do
    (( tries-- )) || fail "the read at $at MiB stands still"
    sleep 0.1
  done
  same "bytes of the read at $at MiB" 1048576 "$(stat --format=%s "part$at")"
done
same "bytes of the device" "$wanted" "$(digest "$device")"
thinorigin detach "$device" --admin "unix:$work/admin.sock"
same "connected devices" '' "$(connected)"
stop serve.pid
