# Metadata that is nearly full grows with the next command that finds it so, in a pool that was lent and is to grow; the
# volumes beside it are left alone.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

info() { smctl sr info lane --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
vgcreate -q -s 1M theirs "$SCRATCH"
lvcreate -q -y --type thin-pool -L 64M --poolmetadatasize 2M -n small theirs
lvcreate -q -y -L 16M -n precious theirs
precious=$(digest /dev/mapper/theirs-precious)
smctl sr introduce --name lane --adopt-pool small --grow theirs
before=$(info metadata_size)
smctl vdi create lane --name first --size 1M
same "metadata that is not full" "$before" "$(info metadata_size)"
# Every thin device takes a block of it.
for (( id = 1000; id < 1400; id++ )); do dmsetup message theirs-small 0 "create_thin $id"; done
smctl sr info lane | grep 'of the metadata of theirs/small is in use'
smctl vdi create lane --name second --size 1M 2>said
same "warnings" 0 "$(wc -l <said)"
after=$(info metadata_size)
(( after >= 2 * before )) || fail "the metadata has $after, as it had $before"
echo "FACT metadata grew from $before to $after bytes"
same "warnings" '[]' "$(info warnings)"
dmsetup status theirs-small | grep -w rw
smctl sr destroy lane --force
same "the volume of somebody else" "$precious" "$(digest /dev/mapper/theirs-precious)"
vgremove -q -y theirs
becomes_true nothing_is_left
