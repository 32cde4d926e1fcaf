# Clones of clones, three deep, are written, discarded, enlarged beyond their template and reverted, and read to the byte as
# a model of them does: also after all was detached, in a pool without a free block, and when that has grown.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

# It ends in the middle of a block of the pool, after data.
head -c 2M /dev/urandom >template.raw
truncate -s 4M template.raw
head -c 100864 /dev/urandom >>template.raw
qemu-img convert -q -c -O qcow2 template.raw template.qcow2
qemu-img convert -q -O raw template.qcow2 decoded.raw
vgcreate -q -y theirs "$SCRATCH"
"$lab/clone-tree" "$work/template.qcow2" decoded.raw
vgremove -q -y theirs
pvremove -q -y "$SCRATCH"
becomes_true nothing_is_left
