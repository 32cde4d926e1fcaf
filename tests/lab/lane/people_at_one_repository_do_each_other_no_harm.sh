# Three people run random verbs on one repository at the same time, and some of the verbs are killed: afterwards every disk
# that somebody was told of is there with its bytes, nothing else is, and the pool's metadata is whole.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

head -c 2M /dev/urandom >template.raw
truncate -s 8M template.raw
qemu-img convert -q -c -O qcow2 template.raw template.qcow2
serve_over_http "$work"
"$lab/sr-stress" "$HTTP_URL/template.qcow2" template.raw 3 25
becomes_true nothing_is_left
