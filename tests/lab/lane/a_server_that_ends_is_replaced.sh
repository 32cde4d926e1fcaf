# A server that is killed or ended leaves its devices to the next one: readers wait and get the right bytes, and a disk
# can be detached whatever became of the server or of the image.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
wanted=$(guest_digest template.qcow2)
smctl sr create --name sr "$SCRATCH"
smctl vdi introduce sr "$work/template.qcow2" --name template
for vdi in one two; do smctl vdi clone sr template --name $vdi; done
one=$(smctl vdi attach sr one)

# Killed with reads under way: they go on when something needs the template again and starts a server.
pkill -KILL -x thinorigin
becomes_true eval '! pgrep -x thinorigin'
digest "$one" >read.log &
reader=$!
two=$(smctl vdi attach sr two)
wait $reader
same "bytes read across the change of servers" "$wanted" "$(<read.log)"
same "bytes of the second clone" "$wanted" "$(digest "$two")"

# Ended, and the image gone: what was attached can still be taken away.
pkill -TERM -x thinorigin
becomes_true eval '! pgrep -x thinorigin'
mv template.qcow2 elsewhere
smctl vdi detach sr two
smctl vdi detach sr one
same "connected devices" '' "$(connected)"
smctl sr destroy sr --force
becomes_true nothing_is_left
