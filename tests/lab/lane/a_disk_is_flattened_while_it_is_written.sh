# What a disk reads from its template is copied into the disk while a guest writes and reads it back: killed, interrupted
# and to the end. No byte is wrong, the guest never stands still, and the template can be forgotten afterwards.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

# Mostly data, with holes of which nothing must come over.
truncate -s 128M template.raw
for place in 0 40 90; do
  head -c 32M /dev/urandom | dd of=template.raw bs=1M seek=$place conv=notrunc iflag=fullblock status=none
done
qemu-img convert -q -O qcow2 template.raw template.qcow2
wanted=$(digest template.raw)
serve_over_http "$work"
smctl sr create --name lane "$SCRATCH"
smctl vdi introduce lane "$HTTP_URL/template.qcow2" --name template
smctl vdi clone lane template --name web
smctl vdi snapshot lane web --name before
web=$(smctl vdi attach lane web)
device=$(readlink -f "$web")
device=$(<"/sys/block/${device##*/}/dm/name")

cp template.raw bytes
background guest "$lab/guest" "$web" "$work/bytes"
rounds() { grep -c '^[0-9]' guest.log || true; }
goes_on() {
  local from
  from=$(rounds)
  running guest.pid || fail "the guest ended: $(tail -n 1 guest.log)"
  becomes_true more_than "$(( from + 1 ))"
}
more_than() { (( $(rounds) > $1 )); }
scratch() { dmsetup ls | grep -E -c -e '-(flatten|probe|nothing)' || true; }
field() { smctl vdi info lane web | sed -n "s/^ *$1  //p"; } # NAME: empty where it has none
used() { field physical_utilisation; }
goes_on

# Killed at any moment: the guest goes on by itself, and recovery leaves nothing.
kills=0
for moment in 0.1 0.15 0.2 0.25 0.3 0.4; do
  smctl vdi flatten lane web &
  flatten=$!
  sleep $moment
  if kill -KILL $flatten 2>/dev/null; then (( kills += 1 )); fi
  wait $flatten || true
  goes_on
  smctl sr recover lane
  same "devices of a killed flattening" 0 "$(scratch)"
  goes_on
done
(( kills > 2 )) || fail "only $kills kills"

# Interrupted, of a disk that is not attached: it ends within a second, and flattened again it goes on.
smctl vdi clone lane template --name stopped
smctl vdi flatten lane stopped 2>said &
flatten=$!
works() { (( $(scratch) )); }
becomes_true works
began=${EPOCHREALTIME/[.,]/}
kill -INT $flatten
status=0
wait $flatten || status=$?
echo "FACT an interrupt ends flattening within $(( (${EPOCHREALTIME/[.,]/} - began) / 1000 )) ms"
same "status of an interrupted flattening" 1 $status
grep -q interrupted said
smctl vdi flatten lane stopped
same "bytes of the interrupted one" "$wanted" "$(digest "$(smctl vdi attach lane stopped)")"
smctl vdi detach lane stopped
smctl vdi destroy lane stopped
goes_on

# While somebody else flattens a disk, nobody else does. To the end, while others have the repository.
exec 9>"/run/thinorigin/lock/work-$(field uuid)"
flock 9
refuses 3 smctl vdi flatten lane web
exec 9>&-
smctl vdi flatten lane web &
flatten=$!
smctl vdi clone lane template --name other
smctl vdi snapshot lane web --name amid
wait $flatten
goes_on
same "origin" '' "$(field origin)"
same "words in the disk's table" 5 "$(dmsetup table "$device" | wc -w)"
same "devices left" 0 "$(scratch)"
smctl vdi flatten lane web
goes_on
stop guest.pid
grep '^right' guest.log || fail "the guest: $(tail -n 1 guest.log)"
echo "FACT guest: $(tail -n 1 guest.log)"
# The template's 96 MiB, and what the guest wrote into the holes.
(( $(used) >= 96 * 1048576 && $(used) <= 128 * 1048576 ))
same "bytes" "$(digest bytes)" "$(digest "$web")"

# What descends from it keeps the template, and is not harmed.
refuses 3 smctl vdi forget lane template
for vdi in amid other; do smctl vdi destroy lane $vdi; done
refuses 3 smctl vdi forget lane template

# One that is not attached, and one that goes back to a snapshot which has a template still.
smctl vdi clone lane template --name second
smctl vdi snapshot lane second --name second-before
smctl vdi flatten lane second
smctl vdi revert lane second second-before
second=$(smctl vdi attach lane second)
same "bytes after going back" "$wanted" "$(digest "$second")"
smctl vdi detach lane second
for vdi in second before; do smctl vdi flatten lane $vdi; done
smctl vdi destroy lane second-before
same "connected devices" '' "$(connected)"
smctl vdi forget lane template
"$lab/http" stop "$work/http"
rm template.qcow2

smctl vdi detach lane web
smctl sr detach lane
smctl sr attach lane
web=$(smctl vdi attach lane web)
same "bytes without a template" "$(digest bytes)" "$(digest "$web")"
for vdi in before second; do
  same "bytes of $vdi" "$wanted" "$(digest "$(smctl vdi attach lane $vdi)")"
  smctl vdi detach lane $vdi
done
! pgrep -x thinorigin || becomes_true eval '! pgrep -x thinorigin'
# What is discarded reads as zeros now.
blkdiscard --offset 1M --length 1M "$web"
same "what was discarded" "$(head -c 1M /dev/zero | sha256sum)" "$(dd if="$web" bs=1M skip=1 count=1 status=none | sha256sum)"
smctl vdi detach lane web
# Activating the pool checks its metadata.
smctl sr detach lane
smctl sr attach lane
smctl sr destroy lane --force
becomes_true nothing_is_left
