# smctl is killed at every point while disks are made, changed, attached and destroyed: after recovery all is as before or as
# after, nothing is left over, the metadata of the pool is whole, and what else is in the volume group is as it was.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

head -c 3M /dev/urandom >template.raw
truncate -s 8M template.raw
qemu-img convert -q -O qcow2 template.raw template.qcow2
cc -shared -fPIC -O1 -o kill.so "$lab/kill.c"
export KILL_LIBRARY=$work/kill.so
"$lab/kill-sweep" disks "$work/template.qcow2"
becomes_true nothing_is_left
