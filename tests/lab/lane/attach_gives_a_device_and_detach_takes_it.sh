# `thinorigin attach` prints a kernel device with the bytes of the image; `detach` leaves no device and no process.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
serve_over_http "$work"
for location in "$work/template.qcow2" "$HTTP_URL/template.qcow2"; do
  device=$(thinorigin attach "$location")
  same "connected devices" "$device" "$(connected)"
  same "bytes of $device" "$(guest_digest template.qcow2)" "$(digest "$device")"
  same "read-only flag" 1 "$(blockdev --getro "$device")"
  same "what is attached" "$device $location" "$(thinorigin attached | awk '$1 ~ "^/dev/" { print $1, $NF }')"
  [[ $(thinorigin attached --json) == *'"serving": true'*'"under_way": 0'* ]]
  thinorigin detach "$device"
  same "connected devices" '' "$(connected)"
  becomes_true nothing_is_left
done

device=$(thinorigin attach "$work/template.qcow2" --device /dev/nbd5)
same "device asked for" /dev/nbd5 "$device"
refuses 3 thinorigin attach "$work/template.qcow2" --device /dev/nbd5
thinorigin detach /dev/nbd5
refuses 1 thinorigin attach "$work/missing.qcow2"
same "what is attached" '[]' "$(thinorigin attached --json)"
becomes_true nothing_is_left
