# A disk is flattened in a pool that has no room for all of it: it stops with an error, leaves room to guests, and nothing
# is lost. So it does when the template cannot be read. Afterwards it goes on; where the pool grows by itself, it grows.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

head -c 96M /dev/urandom >template.raw
wanted=$(digest template.raw)
vgcreate -q -y lane "$SCRATCH"
smctl sr introduce --name lane --pool-size 64M lane
smctl vdi introduce lane "$work/template.raw" --name template
for vdi in big other; do smctl vdi clone lane template --name $vdi; done
big=$(smctl vdi attach lane big)
field() { smctl vdi info lane big | sed -n "s/^ *$1  //p"; }
same "percent from the template" 100 "$(field from_template_percent)"

refuses 1 smctl vdi flatten lane big
[[ $said == *'left to guests'* ]] || fail "$said"
same "bytes" "$wanted" "$(digest "$big")"
(( $(field physical_utilisation) > 32 * 1048576 ))
(( $(field from_template_percent) < 70 ))
[[ -n $(field origin) ]] || fail "flattened though the pool is full"
# A guest still has room.
other=$(smctl vdi attach lane other)
head -c 1M /dev/urandom >noise
dd if=noise of="$other" bs=64k oflag=direct conv=notrunc status=none
cmp noise <(head -c 1M "$other")
smctl vdi detach lane other
smctl vdi destroy lane other

# The template is away: it stops, and what was copied stays.
pkill -KILL -x thinorigin
becomes_true eval '! pgrep -x thinorigin'
mv template.raw away.raw
status=0
timeout 200 smctl vdi flatten lane big 2>said || status=$?
(( status == 1 )) || fail "status $status: $(<said)"
same "devices left" 0 "$(dmsetup ls | grep -E -c -e '-(flatten|probe|nothing)' || true)"
mv away.raw template.raw

smctl sr grow lane --automatically yes
before=$(smctl sr info lane --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["pool_size"])')
(( before < 108 << 20 )) || fail "there is room for all of it: $before"
smctl vdi flatten lane big --json >report
grep 'grow the thin pool' report
same "origin" '' "$(field origin)"
smctl vdi forget lane template
rm template.raw
same "bytes without a template" "$wanted" "$(digest "$big")"
smctl vdi detach lane big
smctl sr destroy lane --force
vgremove -q -y lane
pvremove -q "$SCRATCH"
becomes_true nothing_is_left
