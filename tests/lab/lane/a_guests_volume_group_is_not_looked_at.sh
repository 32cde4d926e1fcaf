# Guests have LVM on their disks, with a group of the same name as the repository's: whatever smctl is asked, it reads nothing
# of these disks nor of their template, and finds the repository and nothing of the guests'.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

lvm_on() { # DEVICE COMMAND...: as it is done in the guest, whose LVM sees this disk only
  local device=$1
  shift
  lvm "$@" --config "devices { use_devicesfile=0 global_filter=[\"a|^$device\$|\",\"r|.*|\"] }"
}
truncate -s 32M template.raw
loop=$(losetup --find --show template.raw)
lvm_on "$loop" vgcreate -q -y lane "$loop"
lvm_on "$loop" lvcreate -q -y -a n -L 8M -n root lane
losetup --detach "$loop"
smctl sr create --name lane "$SCRATCH"
smctl vdi introduce lane "$work/template.raw" --name template
smctl vdi clone lane template --name thin
smctl vdi create lane --name thick --size 32M --preallocate
disks=()
for vdi in thin thick; do disks+=("$(readlink -f "$(smctl vdi attach lane $vdi)")"); done
dd if=template.raw of="${disks[1]}" bs=1M oflag=direct conv=notrunc status=none
groups_of_guests() {
  for disk in "${disks[@]}"; do same "volumes of the guest on $disk" root "$(lvm_on "$disk" lvs --noheadings -o lv_name | tr -d ' ')"; done
}
groups_of_guests
sync
echo 3 >/proc/sys/vm/drop_caches
reads() { # of the guests' disks and of what is under them, in requests
  local disk
  for disk in "${disks[@]}"; do awk '{ print $1 }' "/sys/block/${disk##*/}/stat"; done
  awk '{ print $1 }' "/sys/block/$(basename "$(connected)")/stat"
}
before=$(reads)

for verb in list 'info lane' "probe $SCRATCH" 'recover lane' 'attach lane' 'grow lane --dry-run'; do
  # shellcheck disable=SC2086 # words
  smctl sr $verb --json >"said.${verb%% *}"
done
smctl host-volumes --json >said.volumes
smctl tree --json >said.tree
smctl vdi list lane --json >said.vdis
smctl vdi create lane --name other --size 4M --preallocate
smctl vdi destroy lane other
same "reads of the guests' disks" "$before" "$(reads)"
same "repositories" 1 "$(python3 -c 'import json; print(len(json.load(open("said.list"))))')"
! grep -E '"root"|/dev/(dm|mapper|thinorigin)' said.list said.info || fail "something of the guest's is shown"
# The test would see a read.
dd if="${disks[0]}" of=/dev/null bs=4k count=1 iflag=direct status=none
[[ $before != "$(reads)" ]] || fail "a read is not seen"

# The guest is still whole, and goes with the repository.
groups_of_guests
for vdi in thin thick; do smctl vdi detach lane $vdi; done
smctl sr destroy lane --force
becomes_true nothing_is_left
