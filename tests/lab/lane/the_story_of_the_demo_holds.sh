# What `make demo` tells, on a template small enough for every test run.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
cp template.qcow2 large.qcow2
qemu-img resize -q large.qcow2 100G
"$lab/demo-story" "$THINORIGIN_PROGRAMS" "$work/template.qcow2" "$work/large.qcow2" "$(guest_digest template.qcow2)"
