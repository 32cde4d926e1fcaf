# Every command of docs/libvirt.md does what it says there, and an SR or VDI is found by every name and path that it has.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
serve_over_http "$work"
DISK=$SCRATCH IMAGE=$HTTP_URL/template.qcow2
export DISK IMAGE
# shellcheck disable=SC2016 # the backquotes are those of Markdown
sed -n '/^```sh$/,/^```$/p' "$lab/../../docs/libvirt.md" | sed '/^```/d' >page.sh
(( $(grep -c smctl page.sh) >= 25 ))
bash -euxo pipefail page.sh
becomes_true nothing_is_left

field() { # FIELD COMMAND...: of the JSON document that the command prints
  local field=$1
  shift
  "$@" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$field"
}
# The sum of what is in use and what is free is what there is.
sr=$(smctl sr create --name pool "$SCRATCH")
smctl vdi create pool --name data --size 64M
capacity=$(field capacity smctl sr info pool)
same "capacity" "$capacity" $(( $(field allocation smctl sr info pool) + $(field available smctl sr info pool) ))
same "capacity of an SR of its own" "$capacity" "$(field vg_size smctl sr info pool)"
same "capacity of a disk" $(( 64 << 20 )) "$(field capacity smctl vdi info pool data)"
device=$(smctl vdi attach pool data)
dd if=/dev/zero of="$device" bs=64k count=3 conv=fsync status=none
same "allocation of a disk" $(( 3 << 16 )) "$(field allocation smctl vdi info pool data)"
same "physical size of a disk" "$(blockdev --getsize64 "$device")" "$(field physical smctl vdi info pool data)"

template=$(smctl vdi introduce pool "$IMAGE" --name template)
smctl vdi introduce pool "$work/template.qcow2" --name here
clone=$(smctl vdi clone pool template --name clone)
shown=$(smctl vdi attach pool clone)
node=$(readlink -f "$shown")
for name in "$sr" pool "$SCRATCH" /dev/pool "/dev/pool/smctl-$sr-pool" /dev/pool/smctl-"$sr"-meta "$shown" "$node" "/dev/thinorigin/$sr"; do
  same "the SR by $name" "$sr" "$(field uuid smctl sr info "$name")"
done
for name in "$clone" clone "$shown" "$node"; do
  same "the disk by $name" "$clone" "$(field uuid smctl vdi info pool "$name")"
done
origin=/dev/$(basename "$(ls -d /sys/block/"$(connected | sed s,/dev/,,)"/holders/*)")
for name in "$template" template "$IMAGE" "$(connected)" "$origin"; do
  same "the template by $name" "$template" "$(field uuid smctl vdi info pool "$name")"
done
same "a template by a path from here" here "$(field name smctl vdi info pool ./template.qcow2)"
refuses 1 smctl vdi info pool "$HTTP_URL/other.qcow2"
refuses 1 smctl vdi info pool /dev/null
refuses 1 smctl sr info /dev/nothing
refuses 1 smctl sr info /dev/null
# Where a name means two, it is refused and both are named.
smctl vdi introduce pool "$IMAGE" --name template
refuses 3 smctl vdi info pool "$IMAGE"
[[ $said == *"$template"* ]]
refuses 3 smctl vdi info pool template
smctl vdi detach pool clone
smctl vdi detach pool data
smctl sr destroy pool --force
becomes_true nothing_is_left
