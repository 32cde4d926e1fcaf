# A thin clone is mounted and at work while the server under its template is ended, killed, and replaced by another build:
# it waits, and sees no error and no wrong byte. When no server ever comes back, reads of the template end in errors within
# the time that is set, and what has nothing to do with the template goes on.
# It mostly waits.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
serve_over_http "$work"
smctl sr create --name sr "$SCRATCH"
smctl vdi introduce sr "$HTTP_URL/template.qcow2" --name template
smctl vdi clone sr template --name machine
smctl vdi create sr --name other --size 64M
machine=$(smctl vdi attach sr machine)
other=$(smctl vdi attach sr other)
mkdir mounted
mount "$machine" mounted
wanted=$(digest mounted/var/tmp/random)
becomes_true pgrep -x thinorigin >pids

# What a machine does: reads from its template, writes, and reads back what it wrote. One line for each round, with the
# milliseconds it took.
cat >work-load <<'LOAD'
#!/bin/bash
set -eu
now() { local now=${EPOCHREALTIME/[.,]/}; echo $(( now / 1000 )); }
for (( round = 0; ; round++ )); do
  began=$(now)
  echo 3 >/proc/sys/vm/drop_caches
  read -r sum _ < <(sha256sum mounted/var/tmp/random)
  [[ $sum == "$1" ]] || { echo "WRONG read in round $round: $sum"; exit 1; }
  head -c 200000 /dev/urandom >written
  cp written "mounted/file$(( round % 8 ))"
  sync "mounted/file$(( round % 8 ))"
  echo 3 >/proc/sys/vm/drop_caches
  cmp written "mounted/file$(( round % 8 ))" || { echo "WRONG bytes written in round $round"; exit 1; }
  echo "$round $(( $(now) - began ))"
done
LOAD
background load bash work-load "$wanted"
# A build of its own, as far as anybody can tell.
mkdir build
cp "$(command -v thinorigin)" build/thinorigin
echo >>build/thinorigin
serve_with() { background "$1" "$2" serve --admin unix:/run/thinorigin/admin.sock --while-attached; }

goes_on
echo "FACT longest round, undisturbed: $(longest 0) ms" >stalls
for how in TERM KILL; do
  from=$(rounds)
  pkill "-$how" -x thinorigin
  becomes_true eval '! pgrep -x thinorigin'
  sleep 1
  serve_with "after-$how" thinorigin
  goes_on
  echo "FACT longest round with $how and 1 s without a server: $(longest "$from") ms" >>stalls
done
# An upgrade: the new one is ready to start when the old one ends.
from=$(rounds)
pkill -TERM -x thinorigin
becomes_true eval '! pgrep -x thinorigin'
serve_with upgrade "$work/build/thinorigin"
goes_on
echo "FACT longest round with an upgrade: $(longest "$from") ms" >>stalls
! grep WRONG load.log || fail "wrong bytes"
cat stalls
stop load.pid
umount mounted

# Nobody comes back.
pkill -KILL -x thinorigin
becomes_true eval '! pgrep -x thinorigin'
echo 3 >/proc/sys/vm/drop_caches
began=$SECONDS
background reader dd if="$machine" of=/dev/null bs=1M iflag=direct
# Meanwhile the rest of the repository is as it was.
head -c 1M /dev/urandom >noise
for place in 0 20 50; do
  timeout 10 dd if=noise of="$other" bs=1M seek=$place oflag=direct conv=notrunc status=none
  timeout 10 dd if="$other" of=back bs=1M skip=$place count=1 iflag=direct status=none
  cmp noise back
done
smctl vdi list sr --json >vdis.json
running reader.pid || fail "the reader did not wait: $(<reader.log)"
# The kernel waits 120 s for a server.
while running reader.pid; do
  (( SECONDS - began < 200 )) || fail "the reader waits for ever"
  sleep 1
done
grep -q 'Input/output error' reader.log
echo "FACT without a server, EIO after $(( SECONDS - began )) s"
timeout 10 dd if=noise of="$other" bs=1M oflag=direct conv=notrunc status=none

# Started again, a server serves the same template; the machine's disk is whole.
smctl vdi detach sr machine
smctl vdi detach sr other
machine=$(smctl vdi attach sr machine)
mount "$machine" mounted
same "bytes of the template" "$wanted" "$(digest mounted/var/tmp/random)"
umount mounted
smctl vdi detach sr machine
smctl sr destroy sr --force
becomes_true nothing_is_left
