# Two clones of one template on a server: each keeps what is written to it over a detach, neither sees the other's,
# and the template reads back as it was.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
template=$(guest_digest template.qcow2)
serve_over_http "$work"
smctl sr create --name lane "$SCRATCH"
smctl vdi introduce lane "$HTTP_URL/template.qcow2" --name template
smctl vdi clone lane template --name one
smctl vdi clone lane template --name two
one=$(smctl vdi attach lane one)
two=$(smctl vdi attach lane two)
same "bytes of a fresh clone" "$template" "$(digest "$one")"
same "one NBD device for both clones" 1 "$(connected | wc -l)"

# Writes of odd sizes at odd places: within a block of the pool, over the border of two, at the end of the disk.
head -c 3M /dev/urandom >noise
for place in 0:512 65024:1024 1048576:65536 3145216:200704 67108352:512; do
  dd if=noise of="$one" bs=512 seek=$(( ${place%:*} / 512 )) count=$(( ${place#*:} / 512 )) conv=fsync,notrunc status=none
done
written=$(digest "$one")
[[ $written != "$template" ]] || fail "the writes changed nothing"
same "bytes of the other clone" "$template" "$(digest "$two")"
dd if=noise of="$two" bs=64k seek=7 count=3 conv=fsync status=none
other=$(digest "$two")

smctl vdi detach lane one
smctl vdi detach lane two
one=$(smctl vdi attach lane one)
two=$(smctl vdi attach lane two)
same "bytes of the first clone after a detach" "$written" "$(digest "$one")"
same "bytes of the second clone after a detach" "$other" "$(digest "$two")"
same "bytes of the template's device" "$template" "$(digest "$(connected)")"
smctl vdi clone lane template --name three
three=$(smctl vdi attach lane three)
same "bytes of a later clone" "$template" "$(digest "$three")"

for vdi in one two three; do
  smctl vdi detach lane $vdi
  smctl vdi destroy lane $vdi
done
same "the image on the server" "$template" "$(guest_digest template.qcow2)"
smctl vdi forget lane template
smctl sr destroy lane
becomes_true nothing_is_left
